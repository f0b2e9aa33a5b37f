"""Every message that the troubleshooting page lists is one that the program prints."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.docs.blocks import ROOT

_PACKAGES = ("vora_core", "model_plugin", "vora_serve")
_VALUE = "\0"


def _template(node: ast.expr) -> str | None:
    """A string of the source, each of its placeholders one character."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) or _VALUE for part in node.values)
    return None


@cache
def templates() -> frozenset[str]:
    """Every string of the packages but docstrings, and the lines of the installer."""
    found = set((ROOT / "docker/requirements/install.sh").read_text(encoding="utf-8").splitlines())
    for package in _PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            statements = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.expr) and id(node) not in statements:
                    text = _template(node)
                    if text:
                        found.add(text)
    return frozenset(found)


def printed(message: str) -> bool:
    """Whether the program has a message of this form; ``…`` stands for any value."""
    parts = (re.escape(part) for part in message.split("…"))
    form = re.compile(".*".join(parts), re.DOTALL)
    return any(form.search(text) for text in templates())


def messages() -> list[str]:
    """The sentences in the tables of the page, but for those that are vLLM's own."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    startup, _, requests = text.partition("## Requests")
    first = re.findall(r"^\| `([^`]+)` \|", startup, re.MULTILINE)
    second = re.findall(r"^\| \d{3}[^|]*\| `([^`]+)` \|", requests, re.MULTILINE)
    return first + second


def test_every_message_is_one_that_the_program_prints() -> None:
    listed = messages()
    assert len(listed) > 30
    assert [message for message in listed if not printed(message)] == []


def test_an_invented_message_is_found() -> None:
    assert not printed("The engine … did not become ready.")
    assert not printed("The port … is taken by somebody.")


def test_codes_are_those_of_the_gateway() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d{3} ([^|]+)\|", text, re.MULTILINE)
    codes = {code for row in rows for code in re.findall(r"`([…a-z_]+)`", row)}
    assert len(codes) > 15
    assert [code for code in sorted(codes) if not printed(code)] == []
