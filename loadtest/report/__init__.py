"""A run's report: one self-contained HTML page and a Markdown summary of the same content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loadtest.report.render import to_html, to_markdown

__all__ = ["write_report"]


def write_report(folder: Path, found: dict[str, Any], notes: str | None = None) -> None:
    """Write ``report.html`` and ``report.md``.

    Args:
        folder: where to.
        found: what ``summarise`` gives.
        notes: Markdown of the reader's own, such as explanations; goes before the tables.
    """
    # It draws with matplotlib, which whoever only writes tables may lack.
    from loadtest.report.content import blocks_for

    blocks = blocks_for(found, notes)
    title = f"Load test: {found['head']['settings']['name']}"
    (folder / "report.html").write_text(to_html(title, blocks), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(title, blocks), encoding="utf-8")
