"""The layering rules hold, in the source and in a running interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from tests.import_rules import (
    PACKAGES,
    ROOT,
    below,
    circles,
    import_graph,
    imports,
    module_name,
    package_graph,
    sources,
    violations,
)

HEAVY = ("torch", "vllm", "transformers", "model_plugin")


def test_there_is_something_to_check() -> None:
    names = {module_name(path) for path in sources()}
    assert {"model_plugin", "model_plugin.spans", "vora_serve", "vora_serve.gateway"} <= names


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_layers(path: Path) -> None:
    assert violations(path.read_text(), module_name(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "snippet"),
    [
        ("model_plugin.config", "import vora_serve"),
        ("model_plugin.config", "from vora_serve.serve import ServeError"),
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
        ("loadtest.run", "from loadtest.programs import bench_worker"),
        ("loadtest.programs.engine", "import vora_serve"),
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


@pytest.mark.parametrize("edges", [import_graph, package_graph], ids=["modules", "packages"])
def test_nothing_imports_in_a_circle(edges: Callable[[], dict[str, set[str]]]) -> None:
    assert circles(edges()) == []


def test_circles_are_found() -> None:
    assert "vora_core.errors" in import_graph()["vora_core.typed_yaml"]
    assert "vora_core" in package_graph()["loadtest.cost"]
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(edges) == [["b", "c"]]


def interpreter(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    return set(interpreter(code).split())


# Packages and modules that need neither torch, vLLM, transformers nor model_plugin; and inside of
# them, what does: programs that the engine's interpreter runs, loops that only numba imports.
LIGHT = (
    "loadtest", "vora_core", "vora_serve.chat", "vora_serve.cli", "vora_serve.command",
    "vora_serve.doctor", "vora_serve.engine", "vora_serve.gateway",
    "vora_serve.inspection", "vora_serve.report", "vora_serve.serve",
)  # fmt: skip
HEAVY_INSIDE = (
    "loadtest.programs", "vora_core.bicubic_loops", "vora_serve.engine.__main__",
    "vora_serve.engine.servers",
    "vora_serve.engine.stopping",
)  # fmt: skip


def light_modules(package: str) -> list[str]:
    names = [module_name(path) for path in sources() if path.name != "__main__.py"]
    return [
        name
        for name in names
        if below(name, package) and not any(below(name, heavy) for heavy in HEAVY_INSIDE)
    ]


@pytest.mark.parametrize("package", LIGHT)
def test_light_modules_load_nothing_heavy(package: str) -> None:
    """Not when every module is imported."""
    assert loaded_after("import " + ", ".join(light_modules(package))).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "module", [*light_modules("vora_core"), "vora_serve.cli", "vora_serve.doctor", "loadtest.cli"]
)
def test_light_modules_load_fast(module: str) -> None:
    """In less than 0.3 s of the processor's time: the best of a few, since neighbours slow it."""
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    assert any(float(interpreter(code)) < 0.3 for _ in range(5))


def test_the_interpreter_check_can_fail() -> None:
    assert "transformers" in loaded_after("from transformers import AutoConfig")


PUBLIC = [
    module_name(path)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("__init__.py"))
    # Importing it needs its folder on the path, and vLLM.
    if module_name(path) != "loadtest.programs.cpu_shim"
]


@pytest.mark.parametrize("name", PUBLIC)
def test_exported_names_exist(name: str) -> None:
    package = import_module(name)
    names = getattr(package, "__all__", [])
    assert len(set(names)) == len(names)
    # vLLM's classes are loaded by the engine's own tests.
    for each in names if name != "model_plugin.engine" else ():
        assert getattr(package, each, None) is not None, each


def test_what_others_use_of_a_package_is_exported() -> None:
    """``from package import name`` outside of it: the name is in ``__all__``, or a module."""
    packages = {module_name(path): path for path in sources() if path.name == "__init__.py"}
    modules = {module_name(path) for path in sources()}
    hidden = [
        f"{module_name(path)}:{line} imports {target}"
        for path in sources()
        for line, target in imports(path.read_text(), module_name(path))
        if (package := target.rpartition(".")[0]) in packages
        and target not in modules
        and not below(module_name(path), package)
        and target.rpartition(".")[2] not in getattr(import_module(package), "__all__", ())
    ]
    assert hidden == []


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
