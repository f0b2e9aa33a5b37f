"""What pages, notebooks and scripts import from the project, or run of it, exists."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.blocks import ROOT

_PACKAGES = "vora_serve|model_plugin|vora_core|loadtest|benchmarks|deploy"
_IMPORT = re.compile(rf"^[\s$>]*from ((?:{_PACKAGES})(?:\.\w+)*) import \(?([\w, ]+)", re.M)
_MODULE = re.compile(rf"(?:^\s*import|-m) ((?:{_PACKAGES})(?:\.\w+)+)", re.M)
_NAMED = (
    ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Name, ast.alias, ast.Constant
)  # fmt: skip
_READ = {".md", ".ipynb", ".sh", ".yaml", ".yml", ".toml", ".html", ".mjs", ""}


def texts() -> Iterator[tuple[str, str]]:
    """Pages, scripts and settings; of notebooks the code."""
    folders = [ROOT / name for name in ("docs", "examples", "deploy", "docker", ".ci")]
    inside = [path for folder in folders for path in folder.rglob("*")]
    for path in [*ROOT.iterdir(), *inside]:
        name = str(path.relative_to(ROOT))
        if path.suffix not in _READ or name.startswith("docs/measurements/") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        yield name, text


def source_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def wrong(text: str) -> list[str]:
    """Modules, and names in them, that do not exist."""
    found = [module for module in _MODULE.findall(text) if not source_of(module)]
    for module, names in _IMPORT.findall(text):
        source = source_of(module)
        if source is None:
            found.append(module)
            continue
        known = {
            getattr(node, "name", None) or getattr(node, "id", None) or getattr(node, "value", None)
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
            if isinstance(node, _NAMED)
        }
        for name in re.findall(r"\w+", names.split(" as ")[0]):
            if name not in known and source_of(f"{module}.{name}") is None:
                found.append(f"{module}.{name}")
    return found


def test_what_pages_import_exists() -> None:
    read = dict(texts())
    assert {"README.md", "examples/notebook.ipynb", "Makefile"} <= read.keys()
    found = "\n".join(read.values())
    assert _IMPORT.findall(found)
    assert len(_MODULE.findall(found)) > 10
    assert {name: faults for name, text in read.items() if (faults := wrong(text))} == {}


def test_what_is_gone_is_found() -> None:
    assert wrong("from vora_serve.demo.scenes import render\n") == ["vora_serve.demo.scenes"]
    assert wrong("from vora_serve.world.scenes import rendr\n") == ["vora_serve.world.scenes.rendr"]
    assert wrong("python -m benchmarks.nothing\n") == ["benchmarks.nothing"]
    assert wrong("from vora_serve.world.scenes import random_scene, render\n") == []
