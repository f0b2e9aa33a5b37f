"""A section's results on disk: complete after every row, whatever happens to the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
#: Takes a row of results.
Write = Callable[[Row], None]


class Record:
    """The JSON file of a section, replaced whole with every row.

    Args:
        folder: where the run's files are.
        section: its name, which is also the file's.
        limit_s: seconds that the section may take.
    """

    def __init__(self, folder: Path, section: str, limit_s: float) -> None:
        self.path = folder / f"{section}.json"
        self._begun = time.monotonic()
        self.content: dict[str, Any] = {
            "section": section,
            "limit_s": limit_s,
            "seconds": 0.0,
            "state": "running",
            "rows": [],
        }
        self._save()

    @property
    def rows(self) -> list[Row]:
        """What has been measured so far."""
        rows: list[Row] = self.content["rows"]
        return rows

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)
        self._save()

    def end(self, state: str) -> None:
        """Say how it ended: ``complete``, or why it is not."""
        self.content["state"] = state
        self._save()

    def _save(self) -> None:
        self.content["seconds"] = round(time.monotonic() - self._begun, 1)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)
