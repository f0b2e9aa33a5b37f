"""Blocks of a report, as Markdown and as one HTML page without references to anything outside."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or below."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """Paragraphs and lists, in a little Markdown: blank lines, ``- ``, ``**bold**``, backquotes."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; every cell is text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """An SVG, shown in HTML only; ``text`` says in words what it shows."""

    svg: str
    text: str


Block = Heading | Text | Table | Plot

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
th,td{border:1px solid #8886;padding:.25rem .6rem;text-align:left;white-space:nowrap}
th{background:#8882}td{font-variant-numeric:tabular-nums}
figure{margin:1rem 0;background:#fff;padding:.5rem;border-radius:.3rem}
figure svg{max-width:100%;height:auto}
figcaption{color:#333}code{background:#8882;padding:0 .2rem}
"""


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report without its plots."""
    parts = [f"# {title}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Text):
            parts.append(block.text.strip())
        elif isinstance(block, Table):
            rows = [block.head, ["---"] * len(block.head), *block.rows]
            parts.append("\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows))
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The report as a page."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
        elif isinstance(block, Text):
            parts.append(_text(block.text))
        elif isinstance(block, Table):
            parts.append(_table(block))
        else:
            label = html.escape(block.text)
            parts.append(f"<figure>{block.svg}<figcaption>{label}</figcaption></figure>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _text(text: str) -> str:
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = paragraph.splitlines()
        if re.match(r"#+ ", lines[0]):
            parts.append(f"<h3>{_inline(lines[0].lstrip('# '))}</h3>")
            lines = lines[1:]
        items = re.split(r"(?m)^- ", "\n".join(lines))
        if items[0].strip():
            parts.append(f"<p>{_inline(items[0].strip())}</p>")
        if len(items) > 1:
            parts.append("<ul>" + "".join(f"<li>{_inline(i.strip())}</li>" for i in items[1:]))
            parts.append("</ul>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>\n"
        for row in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>"
