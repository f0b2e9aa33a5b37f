"""The engine's flags for vision adapters, and what they mean for vLLM's own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model_plugin.checkpoint import locate
from model_plugin.engine.adapters.registry import AdapterRegistry
from model_plugin.engine.adapters.settings import TARGET_MODULES, HostLimits, host_config
from model_plugin.engine.adapters.worker import WORKER_EXTENSION
from vora_core.adapter import (
    KERNEL_RANKS,
    MAX_KERNEL_RANK,
    AdapterHeader,
    kernel_rank,
    open_base,
    require_kernel_rank,
)
from vora_core.errors import ConfigError
from vora_core.identity import llm_digest

#: Model names of adapters.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Room for adapters that are loaded later, where nothing is said.
_SPARE = 4
_DEFAULT_RANK = 64
_DEFAULT_TOKENS = 1024


@dataclass(frozen=True)
class HostFlags:
    """Adapters as asked for on the command line.

    Attributes:
        adapters: name to folder.
        folder: where adapters may be loaded from at run time; from nowhere when None.
        limits: what the engine has room for.
    """

    adapters: Mapping[str, Path]
    folder: Path | None
    limits: HostLimits


def split_flags(arguments: Sequence[str]) -> tuple[HostFlags | None, list[str]]:
    """Take this project's flags for adapters out of an engine's command line.

    Args:
        arguments: the whole command line.

    Returns:
        What they say, None where they are absent; and the rest, which is vLLM's.

    Raises:
        ConfigError: a value does not fit.
        CheckpointError: a folder is no vision adapter.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--vision-adapter", action="append", default=[])
    parser.add_argument("--adapters-folder", type=Path)
    parser.add_argument("--max-adapters", type=int)
    parser.add_argument("--adapter-rank", type=int)
    parser.add_argument("--adapter-image-tokens", type=int)
    found, rest = parser.parse_known_args(arguments)
    if not found.vision_adapter and found.adapters_folder is None:
        for name in ("max_adapters", "adapter_rank", "adapter_image_tokens"):
            if getattr(found, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} goes with --vision-adapter or --adapters-folder.")
        return None, rest
    adapters = parse_adapters(found.vision_adapter)
    headers = [AdapterHeader.open(folder) for folder in adapters.values()]
    if found.adapters_folder is not None and not found.adapters_folder.is_dir():
        raise ConfigError(f"--adapters-folder {found.adapters_folder} is not a directory.")
    limits = _limits(headers, found.max_adapters, found.adapter_rank, found.adapter_image_tokens)
    for header in headers:
        require_kernel_rank(header, limits.rank)
    return HostFlags(adapters, found.adapters_folder, limits), rest


def parse_adapters(given: Sequence[str]) -> dict[str, Path]:
    """Names and folders of ``NAME=PATH`` entries.

    Raises:
        ConfigError: an entry has another form, or a name comes twice.
    """
    adapters: dict[str, Path] = {}
    for entry in given:
        name, sign, path = entry.partition("=")
        if not sign or not path or NAME.fullmatch(name) is None:
            raise ConfigError(
                f"--vision-adapter takes NAME=PATH, with letters, digits, '.', '_' and '-' in the "
                f"name, not {entry!r}."
            )
        if name in adapters:
            raise ConfigError(f"Two vision adapters are called {name}.")
        adapters[name] = Path(path).expanduser()
    return adapters


def _limits(
    headers: Sequence[AdapterHeader], count: int | None, rank: int | None, tokens: int | None
) -> HostLimits:
    largest = max((header.rank for header in headers), default=_DEFAULT_RANK)
    if rank is None:
        rank = kernel_rank(largest)
    elif rank not in KERNEL_RANKS:
        ranks = ", ".join(map(str, KERNEL_RANKS))
        raise ConfigError(f"--adapter-rank {rank} is not one of vLLM's: {ranks}.")
    if count is None:
        count = max(_SPARE, len(headers))
    elif count < max(1, len(headers)):
        raise ConfigError(f"--max-adapters {count} has no room for {len(headers)} adapters.")
    needed = max((header.image_settings.max_tokens for header in headers), default=_DEFAULT_TOKENS)
    if tokens is None:
        tokens = needed
    elif tokens < needed and headers:
        raise ConfigError(
            f"--adapter-image-tokens {tokens} is less than the {needed} tokens that an image of "
            "these adapters takes."
        )
    return HostLimits(count, min(rank, MAX_KERNEL_RANK), tokens)


def vllm_flags(limits: HostLimits) -> list[str]:
    """vLLM's flags that make room for the adapters."""
    return [
        "--enable-lora",
        *("--max-loras", str(limits.adapters)),
        *("--max-cpu-loras", str(limits.adapters)),
        *("--max-lora-rank", str(limits.rank)),
        *("--lora-target-modules", *TARGET_MODULES),
        *("--worker-extension-cls", WORKER_EXTENSION),
    ]


def vllm_settings(limits: HostLimits) -> dict[str, Any]:
    """The same for ``vllm.LLM``, with the host's configuration."""
    return {
        "enable_lora": True,
        "max_loras": limits.adapters,
        "max_cpu_loras": limits.adapters,
        "max_lora_rank": limits.rank,
        "lora_target_modules": list(TARGET_MODULES),
        "worker_extension_cls": WORKER_EXTENSION,
        "hf_overrides": partial(host_config, limits),
    }


def open_registry(model: str, limits: HostLimits) -> AdapterRegistry:
    """A registry for an LLM; its weights are hashed.

    Args:
        model: folder or hub id of the LLM.
        limits: what the engine has room for.

    Raises:
        CheckpointError: it is no LLM that adapters go with.
    """
    folder = locate(model)
    host = open_base(folder)
    return AdapterRegistry(host, llm_digest(folder, host.config), limits)
