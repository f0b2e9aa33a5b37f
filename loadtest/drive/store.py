"""A run's folder: settings, rounds as they come, and what a run that was cut off goes on from.

run.json                            settings, machine, versions, checkpoints, chosen rates
rounds/POINT/REPEAT/SERVER.json     what one server answered in one round
rounds/POINT/REPEAT/complete        every server has been asked; the round counts
logs/                               output of servers and generator
results.json, report.md, report.html
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vora_core.errors import ConfigError


class RunFolder:
    """A run's folder.

    Args:
        path: where it is, or is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def logs(self) -> Path:
        """Folder of logs."""
        return self.path / "logs"

    def begin(self, head: dict[str, Any], keep: tuple[str, ...]) -> dict[str, Any]:
        """Start a run here, or go on with the one that was cut off.

        Args:
            head: what ``run.json`` shall hold.
            keep: keys of it that have to be what they were, for rounds to fit together.

        Returns:
            What ``run.json`` holds.

        Raises:
            ConfigError: another run's results are here.
        """
        file = self.path / "run.json"
        self.logs.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_whole(file, head)
            return head
        found = self.head()
        for key in keep:
            if found.get(key) != json.loads(json.dumps(head[key])):
                raise ConfigError(
                    f"{self.path} holds a run with other {key}; give another folder, or remove it."
                )
        return found

    def head(self) -> dict[str, Any]:
        """``run.json``.

        Raises:
            ConfigError: there is none.
        """
        try:
            head: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(f"{self.path} holds no run.") from None
        return head

    def amend(self, **changes: Any) -> None:
        """Change keys of ``run.json``."""
        write_whole(self.path / "run.json", self.head() | changes)

    def is_complete(self, point: str, repeat: int) -> bool:
        """Whether every server has been asked in that round."""
        return (self._round(point, repeat) / "complete").exists()

    def start_round(self, point: str, repeat: int) -> None:
        """Forget what an interrupted attempt has left."""
        shutil.rmtree(self._round(point, repeat), ignore_errors=True)
        self._round(point, repeat).mkdir(parents=True)

    def save(self, point: str, repeat: int, server: str, result: dict[str, Any]) -> None:
        """Keep one server's part of a round."""
        write_whole(self._round(point, repeat) / f"{server}.json", result)

    def complete(self, point: str, repeat: int) -> None:
        """Let a round count."""
        (self._round(point, repeat) / "complete").touch()

    def rounds(self, point: str) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
        """(repeat, results by server) of each complete round, in order."""
        folders = (self.path / "rounds" / point).glob("*/complete")
        for folder in sorted((path.parent for path in folders), key=lambda path: int(path.name)):
            yield (
                int(folder.name),
                {
                    file.stem: json.loads(file.read_text(encoding="utf-8"))
                    for file in sorted(folder.glob("*.json"))
                },
            )

    def _round(self, point: str, repeat: int) -> Path:
        return self.path / "rounds" / point / str(repeat)


def write_whole(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.part")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
