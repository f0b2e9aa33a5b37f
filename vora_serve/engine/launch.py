"""The engine's command line and environment, closed where vLLM is open by default."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from vora_core.errors import ConfigError
from vora_core.installation import program

# No host has this name (RFC 6761): the engine fetches nothing, whatever a request says.
_NO_DOMAIN = "fetching.invalid"

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_SERVER_DEV_MODE": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Keep-alive connections outlast the gateway's own idle limit.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "30",
}

GIB = 2**30


@dataclass(frozen=True)
class AdapterFlags:
    """Vision adapters as an engine is told of them.

    Args:
        adapters: ``NAME=PATH`` of each.
        folder: Where adapters may be loaded from at run time; from nowhere when None.
        most: Most adapters at a time.
        rank: Largest LoRA rank.
        image_tokens: Most tokens of one image.
    """

    adapters: Sequence[str] = ()
    folder: Path | None = None
    most: int | None = None
    rank: int | None = None
    image_tokens: int | None = None

    def __bool__(self) -> bool:
        return bool(self.adapters) or self.folder is not None

    def command(self) -> list[str]:
        """The engine's flags."""
        result = [part for entry in self.adapters for part in ("--vision-adapter", entry)]
        for flag, value in (
            ("--adapters-folder", self.folder),
            ("--max-adapters", self.most),
            ("--adapter-rank", self.rank),
            ("--adapter-image-tokens", self.image_tokens),
        ):
            if value is not None:
                result += [flag, str(value)]
        return result


@dataclass(frozen=True)
class EngineLaunch:
    """How an engine is started.

    Args:
        model: Directory or hub id.
        served_names: Names that requests may use; the first is the one answers carry.
        uds: Unix socket to listen on.
        args: Further flags for vLLM, which win over the defaults here.
        max_images: Images per request.
        cpu_kvcache_gib: KV cache on a CPU, in GiB; from the machine's memory where absent.
        adapters: Vision adapters beside the model, which is then a plain LLM.
    """

    model: str
    served_names: Sequence[str]
    uds: Path
    args: Sequence[str] = ()
    max_images: int = 16
    cpu_kvcache_gib: int | None = None
    adapters: AdapterFlags | None = None

    def command(self) -> list[str]:
        """The engine's command line."""
        given = {arg.split("=", 1)[0] for arg in self.args}
        result = [*engine_command(), "--model", self.model, "--uds", str(self.uds)]
        if "--served-model-name" not in given:
            result += ["--served-model-name", *self.served_names]
        for flag, values in safe_flags(self.max_images).items():
            if flag not in given:
                result += [flag, *values]
        if self.adapters is not None:
            result += self.adapters.command()
        return [*result, *self.args]

    def environment(self) -> dict[str, str]:
        """The engine's environment."""
        return engine_environment(os.environ, self.cpu_kvcache_gib)


def engine_command() -> list[str]:
    """The command that starts an engine with this interpreter."""
    return [sys.executable, "-m", "vora_serve.engine"]


def safe_flags(max_images: int) -> dict[str, list[str]]:
    """vLLM's flags that a gateway in front wants, by name."""
    return {
        "--allowed-media-domains": [_NO_DOMAIN],
        "--limit-mm-per-prompt": [f'{{"image": {max_images}, "video": 0, "audio": 0}}'],
        "--enable-prompt-tokens-details": [],
        "--enable-auto-tool-choice": [],
        "--tool-call-parser": ["hermes"],
        "--disable-fastapi-docs": [],
        "--disable-uvicorn-access-log": [],
        "--fingerprint-mode": ["none"],
        # Says which pixels the engine takes ready.
        "--middleware": ["model_plugin.engine.announce.AnnounceImages"],
    }


def engine_environment(base: Mapping[str, str], cpu_kvcache_gib: int | None) -> dict[str, str]:
    """The environment of the engine: telemetry and redirects off, a KV cache that fits."""
    result = {**base}
    for name, value in _ENVIRONMENT.items():
        result.setdefault(name, value)
    if cpu_kvcache_gib is not None:
        result["VLLM_CPU_KVCACHE_SPACE"] = str(cpu_kvcache_gib)
    elif "VLLM_CPU_KVCACHE_SPACE" not in result:
        free = psutil.virtual_memory().available // GIB
        result["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, min(4, free // 4)))
    return result


def check_engine_installed() -> None:
    """See that some vLLM is installed, without importing it.

    Raises:
        ConfigError
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return
    raise ConfigError(
        f"vLLM is not installed, so no engine can be started here. Run '{program()} doctor', "
        "or pass --upstream URL to use a running engine."
    )
