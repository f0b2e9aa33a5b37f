"""Do vLLM's releases have the names that this project uses?

    python -m tests.vllm_names                   check the sources against the indexes checked in
    python -m tests.vllm_names --wheel FILE      the same against a wheel's files
    python -m tests.vllm_names --write FILE ...  write the indexes anew, from wheels

An index holds the names of each vLLM module that the project imports, or null for a module that a
release does not have. It is read from the wheel's source: nothing is installed or run. Exit codes:
0 all names are there, 1 some are not.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("model_plugin", "vora_serve", "loadtest", "benchmarks", "tests")
FOLDER = ROOT / "tests" / "fixtures" / "vllm_names"

#: Names of each module, or None for a module that does not exist.
Index = dict[str, list[str] | None]
#: Source of a module by its dotted name, or None.
Read = Callable[[str], str | None]


@dataclass(frozen=True)
class Use:
    """A name that the project takes from vLLM."""

    where: str
    module: str
    name: str | None


def uses_in(source: str, where: str) -> Iterator[Use]:
    """Names of vLLM in a source file: imported ones, and attributes of imported modules."""
    tree = ast.parse(source)
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _is_vllm(node.module):
            for alias in node.names:
                yield Use(f"{where}:{node.lineno}", str(node.module), alias.name)
                imported[alias.asname or alias.name] = (str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _is_vllm(alias.name):
                    yield Use(f"{where}:{node.lineno}", alias.name, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = imported.get(node.value.id, ("", ""))
            # Modules are lower case; attributes of classes and functions are not looked at.
            if module and name == name.lower():
                yield Use(f"{where}:{node.lineno}", f"{module}.{name}", node.attr)


def uses() -> list[Use]:
    """Every use in the project's sources."""
    files = (file for folder in SOURCES for file in sorted((ROOT / folder).rglob("*.py")))
    return [
        use
        for file in files
        for use in uses_in(file.read_text(), file.relative_to(ROOT).as_posix())
    ]


def missing(found: Iterable[Use], index: Index) -> list[str]:
    """One sentence for each use that a release does not have."""
    said = []
    for use in found:
        names = index.get(use.module)
        if use.name is not None and names is not None and use.name in names:
            continue
        if use.name is not None and index.get(f"{use.module}.{use.name}") is not None:
            continue
        if use.name is None and names is not None:
            continue
        if use.module in index and names is None and _is_attribute(use, index):
            continue  # an object, not a module: what it has cannot be read from the source
        whole = ".".join(filter(None, (use.module, use.name)))
        said.append(f"{use.where}: {whole} does not exist")
    return sorted(set(said))


def _is_attribute(use: Use, index: Index) -> bool:
    parent, _, name = use.module.rpartition(".")
    return name in (index.get(parent) or ())


def make_index(found: Iterable[Use], read: Read) -> Index:
    """The names of the modules that the project uses, in one release."""
    modules = {use.module for use in found}
    modules |= {f"{use.module}.{use.name}" for use in found if use.name}
    names_of = cache(lambda module: _names(module, read))
    index: Index = {module: names_of(module) for module in sorted(modules)}
    # What is imported from a module is usually no module itself.
    asked = {use.module for use in found}
    return {module: names for module, names in index.items() if names or module in asked}


def _names(module: str, read: Read) -> list[str] | None:
    source = read(module)
    if source is None:
        return None
    names: set[str] = set()
    for node in _top_level(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = (part for target in targets for part in ast.walk(target))
            names.update(part.id for part in parts if isinstance(part, ast.Name))
            names.update(_lazy_keys(node))
        elif isinstance(node, ast.Import):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*":
                    names.update(_names(_absolute(node, module, read), read) or ())
                else:
                    names.add(alias.asname or alias.name)
    return sorted(names)


def _lazy_keys(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """Keys of a module's table of names that are imported when asked for, as in ``vllm.envs``."""
    if not isinstance(node.value, ast.Dict):
        return set()
    keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
    return {key for key in keys if isinstance(key, str) and key.isidentifier()}


def _absolute(node: ast.ImportFrom, module: str, read: Read) -> str:
    if not node.level:
        return str(node.module)
    parts = module.split(".")
    is_package = read(f"{module}.__init__") is not None
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under ``if`` and ``try`` included."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, ()))
            for handler in getattr(node, "handlers", ()):
                yield from _top_level(handler.body)


def _is_vllm(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == "vllm"


def wheel_reader(wheel: Path) -> Read:
    """Reads modules from a wheel's files."""
    archive = zipfile.ZipFile(wheel)
    files = set(archive.namelist())

    @cache
    def read(module: str) -> str | None:
        base = module.replace(".", "/")
        for name in (f"{base}.py", f"{base}/__init__.py"):
            if name in files:
                return archive.read(name).decode()
        return None

    return read


def version_of(wheel: Path) -> str:
    """The release that a wheel holds, from its file name."""
    return wheel.name.split("-")[1]


def load_indexes() -> dict[str, Index]:
    """The indexes that are checked in, by release."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


def main() -> int:
    """Check, or write indexes."""
    parser = argparse.ArgumentParser(prog="python -m tests.vllm_names", description=__doc__)
    parser.add_argument("--wheel", type=Path, help="check against this wheel")
    parser.add_argument("--write", type=Path, nargs="+", help="write the indexes of these wheels")
    options = parser.parse_args()
    found = uses()
    if options.write:
        for wheel in options.write:
            index = make_index(found, wheel_reader(wheel))
            path = FOLDER / f"{version_of(wheel)}.json"
            lines = (
                f"{json.dumps(module)}: {json.dumps(names)}" for module, names in index.items()
            )
            path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    wheels = [options.wheel] if options.wheel else []
    indexes = {version_of(w): make_index(found, wheel_reader(w)) for w in wheels} or load_indexes()
    failed = False
    for version, index in indexes.items():
        said = missing(found, index)
        failed |= bool(said)
        sys.stdout.write("".join(f"vLLM {version}: {line}\n" for line in said))
        sys.stdout.write(f"vLLM {version}: {len(found)} uses, {len(said)} of them missing\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
