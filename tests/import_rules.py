"""The layering rules as a table, and checkers that read source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vora_core", "model_plugin", "vora_serve", "loadtest")


@dataclass(frozen=True)
class Rule:
    """Modules at or below ``where``, except ``but``, import nothing at or below ``never``."""

    where: str
    never: tuple[str, ...]
    but: tuple[str, ...] = ()


RULES = (
    Rule("vora_core", ("model_plugin", "vora_serve", "loadtest", "tests")),
    Rule("vora_core", ("torch", "transformers", "vllm")),
    Rule("model_plugin", ("vora_serve", "loadtest", "tests")),
    Rule("vora_serve", ("loadtest", "tests")),
    Rule("vora_serve.gateway", ("torch", "vllm", "transformers", "model_plugin")),
    Rule("vora_serve.gateway", ("vora_serve.training",)),
    # A program of its own: the less of the project it loads, the less a hostile file finds there.
    # What the server runs beside the gateway; the process that it starts loads the model.
    Rule("vora_serve.explain.on_demand", ("torch", "transformers", "model_plugin")),
    Rule("vora_serve.serve", ("torch", "transformers", "model_plugin")),
    Rule("vora_serve.documents", ("vora_core", "model_plugin", "vora_serve.gateway", "PIL")),
    Rule("vora_serve.world", ("torch", "transformers", "model_plugin", "vora_serve.demo")),
    Rule("vora_serve.world", ("vora_serve.evaluation", "vora_serve.training")),
    Rule("vora_serve.evaluation", ("vora_serve.demo",)),
    Rule("vora_serve.demo", ("vora_serve.evaluation",)),
    Rule("vora_serve.training", ("vora_serve.base", "vora_serve.demo", "vora_serve.evaluation")),
    Rule("vora_serve.base", ("vora_serve.demo", "vora_serve.evaluation", "vora_serve.world")),
    Rule("model_plugin", ("vllm",), but=("model_plugin.engine",)),
    Rule("vora_serve", ("vllm",), but=("vora_serve.engine",)),
    Rule("vora_core", ("numba",), but=("vora_core.bicubic_loops",)),
    Rule("model_plugin", ("numba",)),
    Rule("loadtest", ("model_plugin", "vora_serve", "tests")),
    # Children are programs, run in processes of their own by the interpreter that has the engine.
    Rule("loadtest", ("torch", "transformers", "vllm"), but=("loadtest.programs",)),
    Rule("loadtest", ("loadtest.programs",), but=("loadtest.programs",)),
)


def below(name: str, top: str) -> bool:
    """Whether dotted ``name`` is ``top`` or lies inside it."""
    return name == top or name.startswith(top + ".")


def module_name(path: Path) -> str:
    """Dotted name of a source file of this checkout; a package for its ``__init__.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    """Every Python file of the packages."""
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted target) of each import anywhere in ``source``, relative ones resolved.

    ``from a import b`` gives ``a.b``, since ``b`` may be a module. ``import_module("a")`` and
    ``__import__("a")`` with a literal count as well.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")
            base = base[: len(base) - (node.level - 1)] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            name = function.id if isinstance(function, ast.Name) else name
            first = node.args[0]
            if (
                name in {"import_module", "__import__"}
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                yield node.lineno, first.value


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One sentence for each import in ``source`` that an arrow or a leading underscore forbids."""
    found = []
    for line, target in imports(source, module, is_package):
        for rule in RULES:
            if below(module, rule.where) and not any(below(module, b) for b in rule.but):
                found += [
                    f"{module}:{line} imports {target}, which {rule.where} may not"
                    for never in rule.never
                    if below(target, never)
                ]
        parts = target.split(".")
        if parts[0] not in PACKAGES:
            continue
        for at, part in enumerate(parts):
            private = part.startswith("_") and not part.startswith("__")
            if private and not below(module, _package_of(".".join(parts[:at]))):
                found.append(f"{module}:{line} imports {target}, private to its package")
    return found


@cache
def import_graph() -> dict[str, set[str]]:
    """Module to the modules of this project that it imports, wherever in its source it does.

    A package counts as what its ``__init__.py`` imports. Importing a name from a package, or a
    submodule of it, is not an import of the package itself: Python runs ``__init__.py`` first, but
    no module depends on more of it than the name that it asks for.
    """
    files = {module_name(path): path for path in sources()}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        for _, target in imports(path.read_text(), module, path.name == "__init__.py"):
            while target and target not in files:
                target = target.rpartition(".")[0]
            if target and target != module and not below(module, target):
                graph[module].add(target)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in sorted(graph.get(module, ())):
            if target not in order:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], order[target])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def _package_of(name: str) -> str:
    """The package that ``name`` is, or that the module ``name`` stands in."""
    is_package = ROOT.joinpath(*name.split(".")).is_dir()
    return name if is_package else name.rpartition(".")[0]


def package_graph() -> dict[str, set[str]]:
    """Per package, the packages that its modules import, but those above or below it."""
    files = {module_name(path): path for path in sources()}

    def home(name: str) -> str:
        return name if files[name].name == "__init__.py" else name.rpartition(".")[0]

    result: dict[str, set[str]] = {}
    for name, targets in import_graph().items():
        for target in map(home, targets):
            if not below(home(name), target) and not below(target, home(name)):
                result.setdefault(home(name), set()).add(target)
    return result
