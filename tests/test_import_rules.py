"""The arrows between the packages hold, in the source and in a running interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.import_rules import PACKAGES, ROOT, imports, module_name, sources, violations

HEAVY = ("torch", "vllm", "transformers", "model_plugin")


def test_there_is_something_to_check() -> None:
    names = {module_name(path) for path in sources()}
    assert {"model_plugin", "model_plugin.spans", "vora_serve", "vora_serve.gateway"} <= names


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_arrows(path: Path) -> None:
    assert violations(path.read_text(), module_name(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "snippet"),
    [
        ("model_plugin.config", "import vora_serve"),
        ("model_plugin.config", "from vora_serve.errors import ServeError"),
        ("model_plugin.model", "import vllm.config"),
        ("vora_core.pixels", "def f():\n    import torch"),
        ("model_plugin.model", "from importlib import import_module\nimport_module('vllm')"),
        ("vora_serve.gateway.app", "from torch import nn"),
        ("vora_serve.gateway.app", "if True:\n    from transformers import AutoConfig"),
        ("vora_serve.gateway.app", "from model_plugin.images import preprocess"),
        ("vora_serve.gateway.app", "from ..training import merge"),
        ("vora_serve.training.run", "import vllm"),
        ("vora_serve.cli", "__import__('vllm')"),
        ("loadtest.run", "from vora_serve import gateway"),
        ("loadtest.run", "import torch"),
        ("loadtest.run", "import vllm"),
        ("loadtest.run", "from loadtest.children import bench_worker"),
        ("loadtest.children.engine", "import vora_serve"),
        ("vora_core.geometry", "from model_plugin.config import VoRAConfig"),
        ("vora_serve.cli", "from vora_serve.gateway._pool import Pool"),
        ("vora_serve.training.run", "from model_plugin import _secret"),
        ("vora_serve.training.run", "from model_plugin.model import _secret"),
        ("model_plugin.model", "from model_plugin.engine._kernels import run"),
    ],
)
def test_the_checker_catches(module: str, snippet: str) -> None:
    assert violations(snippet, module)


@pytest.mark.parametrize(
    ("module", "snippet"),
    [
        ("model_plugin.engine.model", "import vllm"),
        ("vora_serve.engine.child", "from vllm.entrypoints import x"),
        ("vora_serve.training.run", "from model_plugin import VoRAConfig\nimport torch"),
        ("vora_serve.gateway.app", "from ._pool import Pool\nfrom . import __version__"),
        ("vora_serve.gateway.app", "from vora_serve.gateway.pool import _helper"),
        ("model_plugin.engine._kernels", "from model_plugin.engine import _seam"),
        ("vora_serve.gateway.app", "import torchless\n'import torch'  # import vllm"),
    ],
)
def test_the_checker_lets_pass(module: str, snippet: str) -> None:
    assert violations(snippet, module) == []


def test_relative_imports_are_resolved() -> None:
    found = [target for _, target in imports("from ..b import c\nfrom . import d", "p.a.m")]
    assert found == ["p.b.c", "p.a.d"]
    assert [t for _, t in imports("from .b import c", "p.a", is_package=True)] == ["p.a.b.c"]


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_gateway_loads_nothing_heavy() -> None:
    """Not when imported whole, every module of it."""
    modules = [
        module_name(path)
        for path in sources()
        if module_name(path).startswith("vora_serve.gateway") and path.name != "__main__.py"
    ]
    assert loaded_after("import " + ", ".join(modules)).isdisjoint(HEAVY)


def test_the_light_core_loads_nothing_heavy() -> None:
    modules = [
        module_name(path)
        for path in sources()
        # Compiled loops that are imported only where numba is installed and an image is large.
        if module_name(path).startswith("vora_core") and path.stem != "bicubic_loops"
    ]
    assert loaded_after("import " + ", ".join(modules)).isdisjoint({*HEAVY, "numba", "vora_serve"})


def test_the_command_line_loads_nothing_heavy() -> None:
    assert loaded_after("import vora_serve.cli").isdisjoint(HEAVY)


def test_the_interpreter_check_can_fail() -> None:
    assert "transformers" in loaded_after("import model_plugin")


def exported(path: Path) -> list[str]:
    """The names in ``__all__`` of a package's ``__init__.py``; [] where it has none."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


PUBLIC = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("__init__.py"))
    # Naming the engine's classes loads vLLM, which its own tests do.
    if exported(path) and module_name(path) != "model_plugin.engine"
]


@pytest.mark.parametrize("path", PUBLIC, ids=module_name)
def test_exported_names_exist(path: Path) -> None:
    package = import_module(module_name(path))
    names = exported(path)
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(package, name, None) is not None, name


def test_the_architecture_is_defined_once() -> None:
    """No class of model_plugin's own modules is defined again in vora_serve or loadtest."""

    def classes(package: str) -> set[str]:
        return {
            node.name
            for path in (ROOT / package).rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ClassDef)
        }

    ours = {name for name in classes("model_plugin") if name.startswith("VoRA")}
    assert "VoRAForCausalLM" in ours
    assert ours.isdisjoint(classes("vora_serve") | classes("loadtest"))
