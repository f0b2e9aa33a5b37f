"""A base LLM and a vision adapter become the model that is served, on the user's machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.smol.parts import find_parts, join_parts
from model_plugin.export import merge_checkpoint
from vora_core.adapter import is_adapter
from vora_core.errors import ConfigError
from vora_serve.base.importing import import_base


def merge(source: Path, work: Path) -> Iterator[str]:
    """Import SmolLM2 where it is not there yet, and merge an adapter into it; yields what happened.

    Args:
        source: folder of the adapter, or of its pieces.
        work: gets ``base`` (unless it holds one), ``joined``, the adapter, and ``merged``.

    Raises:
        ConfigError: there is no adapter, or a package is missing.
        CheckpointError: the adapter is damaged or was trained on another LLM, or the merged model
            does not agree with the unmerged one on a probe.
    """
    if not find_parts(source) and not is_adapter(source):
        raise ConfigError(
            f"There is no vision adapter for SmolLM2 in {source}. None comes with vora-serve yet: "
            "training one takes eight minutes of a GPU (python -m benchmarks.smol train)."
        )
    base, adapter = work / "base", work / "joined"
    if adapter.exists():
        shutil.rmtree(adapter)
    if is_adapter(source):
        shutil.copytree(source, adapter)
    else:
        join_parts(source, adapter)
    if not base.exists():  # last, since it takes a minute
        yield from import_base("smollm2", base, dtype="bfloat16")
    merge_checkpoint(adapter, work / "merged", base=base, verify=True, overwrite=True)
    yield "Merged and unmerged model agree on a probe."
    yield f"The merged model is in {work / 'merged'}."
