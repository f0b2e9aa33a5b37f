"""How this project is installed: optional packages that a command needs, and the program's name."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from vora_core.errors import ConfigError

DISTRIBUTION = "vora-serve"
_ROOT = Path(__file__).resolve().parents[1]
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[([\w,-]+)\])?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")


def packages(extra: str) -> list[str]:
    """Names of the packages that an extra of this distribution adds, those of its extras included.

    Empty if the distribution is not installed, as in a checkout on ``PYTHONPATH``.
    """
    return list(dict.fromkeys(_packages(extra)))


def _packages(extra: str) -> Iterator[str]:
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        wanted, found = _EXTRA.search(requirement), _REQUIREMENT.match(requirement)
        if wanted is None or found is None or wanted[1] != extra:
            continue
        if found[1] == DISTRIBUTION:
            for inner in (found[2] or "").split(","):
                yield from _packages(inner)
        else:
            yield found[1]


def missing(extra: str) -> list[str]:
    """Names of the packages of an extra that are not installed."""
    return [name for name in packages(extra) if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def remedy(extra: str) -> str:
    """The command that installs an extra into this environment."""
    if not (_ROOT / "docker" / "requirements" / "install.sh").is_file():
        return f"{sys.executable} -m pip install '{DISTRIBUTION}[{extra}]'"
    if Path(os.path.abspath(sys.prefix)) != _ROOT / ".venv":
        return f"{sys.executable} -m pip install -e '{_ROOT}[{extra}]'"
    return "make setup" if Path.cwd() == _ROOT else f"make -C {_ROOT} setup"


def require(extra: str, what: str) -> None:
    """Check that an extra is installed.

    Args:
        extra: a name under ``[project.optional-dependencies]``.
        what: what needs it, as the subject of a sentence.

    Raises:
        ConfigError: a package is missing; the sentence names it and the command that installs it.
    """
    absent = missing(extra)
    if absent:
        raise ConfigError(not_installed(what, absent, extra))


def not_installed(what: str, absent: list[str], extra: str) -> str:
    """The sentence about missing packages."""
    names = ", ".join(absent[:-1]) + " and " * (len(absent) > 1) + absent[-1]
    verb = "is" if len(absent) == 1 else "are"
    return f"{what} needs {names}, which {verb} not installed. Run: {remedy(extra)}"


def program() -> str:
    """How to type this project's program: its name where the shell finds it, else its path."""
    beside = Path(sys.executable).parent / DISTRIBUTION
    found = shutil.which(DISTRIBUTION)
    if found is not None and (not beside.exists() or Path(found).resolve() == beside.resolve()):
        return DISTRIBUTION
    if not beside.exists():
        return DISTRIBUTION
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)
