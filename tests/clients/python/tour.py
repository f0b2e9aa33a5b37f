"""What the tours of all Python clients share; each is a program of its own in the clients' venv.

``python CLIENT.py BASE MODEL IMAGE KEY`` prints a line of JSON for each check:
``{"check": NAME, "ok": true, "detail": TEXT}``.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE, MODEL, KEY = sys.argv[1], sys.argv[2], sys.argv[4]
V1 = f"{BASE}/v1"
IMAGE = Path(sys.argv[3])
IMAGE_BASE64 = base64.b64encode(IMAGE.read_bytes()).decode()
IMAGE_URL = f"data:image/png;base64,{IMAGE_BASE64}"
PDF = IMAGE.with_suffix(".pdf")
PDF_BASE64 = base64.b64encode(PDF.read_bytes()).decode()
PDF_URL = f"data:application/pdf;base64,{PDF_BASE64}"
QUESTION = "What color is the circle?"
ANSWER = "red"
LONG = "Describe the image."

LOOK: dict[str, Any] = {
    "name": "look",
    "description": "Look at the image again.",
    "parameters": {
        "type": "object",
        "properties": {"close": {"type": "boolean", "description": "from close by"}},
        "required": ["close"],
        "additionalProperties": False,
    },
}
SCENE: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer"}},
    "required": ["color", "count"],
    "additionalProperties": False,
}


def right(text: Any) -> str:
    """The answer to the question about the image."""
    assert isinstance(text, str)
    assert ANSWER in text.lower(), f"the answer is {text!r}"
    return text.strip()


def said(text: Any) -> str:
    """Any answer."""
    assert isinstance(text, str)
    assert text.strip(), "the answer is empty"
    return text.strip()[:60]


def pieces(texts: list[str], least: int = 2) -> str:
    """A stream that came in pieces."""
    found = [text for text in texts if text]
    assert len(found) >= least, f"{len(found)} pieces: {found}"
    return f"{len(found)} pieces"


def called(name: Any, arguments: Any) -> str:
    """A call of the tool, by its schema."""
    assert name == "look", f"called {name!r}"
    values = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    assert isinstance(values.get("close"), bool), f"called with {values!r}"
    return f"look({json.dumps(values)})"


def scene(value: Any) -> str:
    """A structured answer, by its schema."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict):
        value = value.model_dump()
    assert value["color"] in ("red", "green", "blue"), f"the answer is {value!r}"
    assert isinstance(value["count"], int)
    return json.dumps(value)


def run(**checks: Callable[[], Any]) -> None:
    """Take the tour."""
    for name, check in checks.items():
        try:
            detail = check()
            if inspect.isawaitable(detail):
                detail = asyncio.run(detail)  # type: ignore[arg-type]
            told = {"check": name, "ok": True, "detail": str(detail)}
        except Exception as error:  # noqa: BLE001 - a client's own kinds of errors
            text = " ".join(f"{type(error).__name__}: {error}".split())
            told = {"check": name, "ok": False, "detail": text[:400]}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
