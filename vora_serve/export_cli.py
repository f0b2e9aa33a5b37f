"""``vora-serve export``: a pretraining run's vision adapter, or its LLM, as files of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vora_core.adapter import MAX_KERNEL_RANK
from vora_core.errors import ConfigError
from vora_serve.command import App

app = App(add_completion=False)

_EXAMPLES = """Examples:

* vora-serve export runs/a/checkpoint adapters/docs --adapter

* vora-serve export runs/a/checkpoint adapters/docs --adapter --rank 256

* vora-serve export runs/a/checkpoint base-llm --llm
"""


@app.command(epilog=_EXAMPLES)
def export(
    source: Annotated[
        str,
        typer.Argument(help="Pretraining checkpoint, not merged; or an adapter, with --base."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Export LoRA factors and embedder.")
    ] = False,
    llm: Annotated[
        bool, typer.Option("--llm", help="Export the LLM alone, as transformers saves it.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="With --adapter: truncate the factors to this rank by SVD."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="With an adapter as the source: the LLM that it was trained on."),
    ] = None,
    base_name: Annotated[
        str | None, typer.Option(help="What the LLM is called [as in the run's recipe].")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16 [as stored]."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing result.")
    ] = False,
) -> None:
    """Export a pretraining run's vision adapter, or the LLM that it belongs to."""
    if adapter == llm:
        raise ConfigError("Say what to export: --adapter or --llm.")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ConfigError(f"--dtype is float32, bfloat16 or float16, not {dtype}.")
    if llm and (rank, base, base_name) != (None, None, None):
        raise ConfigError("--rank, --base and --base-name go with --adapter.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    from model_plugin.adapter_export import export_adapter, export_llm

    transformers.logging.set_verbosity_error()
    stored = getattr(torch, dtype) if dtype is not None else None
    if llm:
        _say(f"The LLM is in {export_llm(source, out, dtype=stored, overwrite=overwrite)}.")
        return
    made = export_adapter(
        source,
        out,
        base=base,
        base_name=base_name,
        rank=rank,
        dtype=stored,
        overwrite=overwrite,
    )
    if made.difference is not None:
        _say(
            f"Truncated from rank {made.full_rank} to {made.rank}: keeps {made.energy:.2%} of the "
            f"updates' energy ({made.least_energy:.2%} in the layer that lost most); logits on a "
            f"probe differ by {made.difference:.2%}."
        )
    if made.rank > MAX_KERNEL_RANK:
        _say(
            f"Rank {made.rank} can be merged, not served beside its LLM: run-time LoRA takes ranks "
            f"up to {MAX_KERNEL_RANK} (--rank {MAX_KERNEL_RANK})."
        )
    _say(f"The adapter is in {made.folder}.")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
