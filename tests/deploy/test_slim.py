"""What images lose of an environment, and what they keep."""

from __future__ import annotations

import compileall
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy.compose import ROOT


@pytest.fixture
def slim() -> ModuleType:
    """``docker/slim.py``, which is no package's."""
    spec = importlib.util.spec_from_file_location("slim", ROOT / "docker" / "slim.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_removes_what_nothing_reads(slim: ModuleType, tmp_path: Path) -> None:
    kept = (
        "torch/bin/torch_shm_manager",
        "torch/lib/a.so",
        "torch/testing/__init__.py",
        "other/tests/data.json",
        "other/include/a.h",
    )
    gone = (
        "torch/bin/test_api",
        "torch/include/a.h",
        "torch/test/a",
        "numpy/x/tests/__init__.py",
        "numpy/x/tests/deep/tests/__init__.py",
        "triton/backends/nvidia/include/a.h",
    )
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for path in list(slim.unused(tmp_path)):
        slim.remove(path)
    assert {n for n in (*kept, *gone) if (tmp_path / n).exists()} == set(kept)


def test_it_strips_no_library_that_was_edited(slim: ModuleType, tmp_path: Path) -> None:
    for name in ("a/x.so", "a/y.cpython-311.so", "a/z.so.1", "numpy.libs/b.so", "a/readme"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "link.so").symlink_to("x.so")
    found = {path.name for path in slim.libraries(tmp_path)}
    assert found == {"x.so", "y.cpython-311.so", "z.so.1"}


def test_bytecode_does_not_depend_on_the_time_of_its_source(
    slim: ModuleType, tmp_path: Path
) -> None:
    module = tmp_path / "a.py"
    written = []
    for seconds in (1_000_000_000, 1_000_000_007):
        module.write_text("x = 1\n")
        os.utime(module, (seconds, seconds))
        compileall.compile_file(module, quiet=2)  # as an installer does
        slim.compile_modules([module])
        written.append(Path(importlib.util.cache_from_source(str(module))).read_bytes())
    assert written[0] == written[1]
