"""An environment that has done ``make demo`` and no more, made out of the developers' one.

Packages that ``docker/requirements/dev.txt`` adds to the engine's can be neither imported nor found
by ``importlib.metadata``. ``tests/docs/test_first_run.py`` has the slow form, a real
environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_REQUIREMENTS = ROOT / "docker" / "requirements"

_BLOCKER = """
import importlib.machinery, importlib.metadata, re

MODULES, DISTRIBUTIONS = {modules}, {distributions}
search = importlib.machinery.PathFinder.find_spec.__func__


def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in MODULES else search(cls, name, path, target)


importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
found = importlib.metadata.Distribution.from_name.__func__


def from_name(cls, name):
    if re.sub(r"[-_.]+", "-", name).lower() in DISTRIBUTIONS:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(cls, name)


importlib.metadata.Distribution.from_name = classmethod(from_name)
"""


def _canonical(name: str) -> str:
    return name.replace("_", "-").replace(".", "-").lower()


def dev_only() -> set[str]:
    """Canonical names of the distributions that ``make setup`` adds to those of ``make demo``."""
    lines = (_REQUIREMENTS / "dev.txt").read_text(encoding="utf-8").splitlines()
    return {_canonical(line.partition("==")[0]) for line in lines if "==" in line}


def environment(folder: Path, distributions: Iterable[str]) -> dict[str, str]:
    """Variables for a subprocess in which these distributions are not installed.

    Args:
        folder: where the file that hides them is written.
        distributions: canonical names.
    """
    hidden = set(distributions)
    modules = {
        module
        for module, owners in metadata.packages_distributions().items()
        if {_canonical(owner) for owner in owners} <= hidden
    }
    text = _BLOCKER.format(modules=json.dumps(sorted(modules)), distributions=repr(hidden))
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    path = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
