"""What a served engine imports: distributions that no process of it used, largest first.

Serves the demo model with this interpreter, asks for text, images, streams, tools and structured
output, and compares the modules of all its processes with the files of what is installed::

    .venv/bin/python docker/requirements/imported.py

What is listed may still be imported by features that were not asked for.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "vora_serve" / "demo" / "checkpoint"
# Each process writes its modules down every second, since engines are ended by signals.
WATCH = """
import os, sys, threading, time
def watch():
    while True:
        time.sleep(1)
        with open(os.path.join(os.environ["MODULES"], str(os.getpid())), "w") as file:
            file.write("\\n".join(list(sys.modules)))
threading.Thread(target=watch, daemon=True).start()
"""
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {"type": "function", "function": {"name": "count", "parameters": SCHEMA}}


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, body) of everything that is asked."""
    image = (ROOT / "tests" / "fixtures" / "released_vora_tiny" / "a.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    chat = {"messages": [{"role": "user", "content": content}], "max_tokens": 32}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for more in (
        {"logprobs": True, "top_logprobs": 2},
        {"stream": True},
        {"response_format": form},
        {"response_format": {"type": "json_object"}},
        {"tools": [TOOL], "tool_choice": "required"},
        {"structured_outputs": {"regex": "[0-9]{2}"}},
        {"structured_outputs": {"choice": ["red", "blue"]}},
        {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
    ):
        yield "/v1/chat/completions", chat | more
    yield "/v1/completions", {"prompt": "red", "max_tokens": 4}
    yield "/v1/responses", {"input": "Hello", "max_output_tokens": 16}


def serve_and_ask(folder: Path) -> None:
    """Serve, ask everything, stop."""
    (folder / "sitecustomize.py").write_text(WATCH)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "vora_serve", "serve", "--model", str(MODEL), "--port",
               url.rpartition(":")[2], "--", "--enforce-eager"]  # fmt: skip
    paths = os.pathsep.join([str(folder), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": paths, "MODULES": str(folder / "modules")}
    process = subprocess.Popen(command, env=env)
    try:
        while process.poll() is None:
            try:
                if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        for path, body in requests():
            answer = httpx.post(url + path, json={"model": MODEL.name} | body, timeout=120)
            answer.raise_for_status()
        time.sleep(2)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def modules_of(found: Distribution) -> set[str]:
    """Dotted names of the modules that a distribution installed."""
    names = set()
    for file in found.files or []:
        if file.suffix in (".py", ".so") and ".." not in file.parts:
            last = [] if file.name == "__init__.py" else [file.name.split(".")[0]]
            names.add(".".join([*file.parts[:-1], *last]))
    return names


def size_of(found: Distribution) -> int:
    """Bytes of a distribution's files."""
    paths = (Path(str(file.locate())) for file in found.files or [])
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    """Serve, then print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "modules").mkdir()
        serve_and_ask(folder)
        files = list((folder / "modules").iterdir())
        used = {line for file in files for line in file.read_text().splitlines()}
    sizes = {found: size_of(found) for found in distributions()}
    idle = sorted((f for f in sizes if not modules_of(f) & used), key=sizes.__getitem__)
    lines = [f"{sizes[f] / 1e6:9.1f} MB  {f.metadata['Name']} {f.version}" for f in idle[::-1]]
    lines += [f"{sum(sizes[f] for f in idle) / 1e6:9.1f} MB  not imported"]
    lines += [f"{sum(sizes.values()) / 1e6:9.1f} MB  installed, {len(files)} processes"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
