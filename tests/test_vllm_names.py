"""Every name of vLLM that the project uses exists in each supported release."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.vllm_names import (
    Index,
    load_indexes,
    make_index,
    missing,
    uses,
    uses_in,
    wheel_reader,
)
from vora_core.versions import SUPPORTED_VLLM, release, supported

INDEXES = load_indexes()


def test_every_supported_release_has_an_index() -> None:
    assert all(supported(version, SUPPORTED_VLLM) for version in INDEXES)
    (major, first), (_, beyond) = SUPPORTED_VLLM
    wanted = {(major, minor) for minor in range(first, beyond)}
    assert {release(version) for version in INDEXES} == wanted


@pytest.mark.parametrize("version", INDEXES)
def test_the_projects_names(version: str) -> None:
    found = uses()
    assert len(found) > 100
    assert missing(found, INDEXES[version]) == [], "moved, or the index is old: make vllm-names"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("from vllm.config import NoSuchConfig", "m.py:1: vllm.config.NoSuchConfig"),
        ("def f():\n    from vllm.no_such import x", "m.py:2: vllm.no_such.x"),
        ("import vllm.no_such", "m.py:1: vllm.no_such"),
        ("from vllm.v1 import utils\nutils.no_such()", "m.py:2: vllm.v1.utils.no_such"),
    ],
)
@pytest.mark.parametrize("version", INDEXES)
def test_names_that_do_not_exist_are_found(version: str, source: str, said: str) -> None:
    assert missing(uses_in(source, "m.py"), INDEXES[version]) == [f"{said} does not exist"]


def test_names_that_moved_are_found() -> None:
    old = list(uses_in("from vllm.utils.torch_utils import is_quantized_kv_cache", "m.py"))
    assert missing(old, INDEXES["0.32.0"]) == []
    assert len(missing(old, INDEXES["0.33.0"])) == 1


def test_wheels_are_read_as_python_would(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm-0.99.0-py3-none-any.whl"
    files = {
        "vllm/__init__.py": "LAZY = {'engine': 1, 'two words': 1}\nif 1:\n    from .a import f\n",
        "vllm/a.py": "try:\n    import x.y\nexcept ImportError:\n    z = w, *v = None\nf = 1\n",
        "vllm/p/__init__.py": "from .q import *\nfrom ..a import f as g\n",
        "vllm/p/q.py": "class C: inside = 1\ndef d(): local = 1\nn: int = 1\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    source = "from vllm import a\nfrom vllm.p import C, q\nimport vllm.p.q\nfrom vllm.gone import h"
    found = list(uses_in(source, "m.py"))
    index: Index = make_index(found, wheel_reader(wheel))
    assert index["vllm"] == ["LAZY", "engine", "f"]
    assert index["vllm.a"] == ["f", "v", "w", "x", "z"]
    assert index["vllm.p"] == ["C", "d", "g", "n"]
    assert index["vllm.gone"] is None
    assert json.loads(json.dumps(index)) == index
    assert missing(found, index) == ["m.py:4: vllm.gone.h does not exist"]
