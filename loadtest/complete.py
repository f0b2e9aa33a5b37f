"""What may follow on the command line, for shells: ``python -m loadtest.complete WORD... PART``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from loadtest.cli import PRESETS, parser


def candidates(words: Sequence[str], part: str) -> list[str]:
    """Commands, options and presets that begin with ``part``, after ``words``."""
    current = parser()
    for word in words:
        current = _commands(current).get(word, current)
    found = list(_commands(current))
    if part.startswith("-"):
        found = [name for action in current._actions for name in action.option_strings]
    elif words and words[-1] == "run":
        found = sorted(file.stem for file in PRESETS.glob("*.yaml"))
    return [name for name in found if name.startswith(part)]


def _commands(current: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A parser's own commands, by name."""
    for action in current._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


if __name__ == "__main__":
    sys.stdout.write("".join(f"{name}\n" for name in candidates(sys.argv[1:-1], sys.argv[-1])))
