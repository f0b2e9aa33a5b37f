"""Checkpoints from a model hub, of which a small fake stands in for the real one, far from here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vora_core.errors import CheckpointError, EngineError
from vora_serve.engine.download import fetch

FIXTURES = Path(__file__).parents[2] / "fixtures" / "released_vora_tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDERS = {"org/vora": FIXTURES / "merged", "org/other": FIXTURES / "teacher_clip"}


class FakeHub(BaseHTTPRequestHandler):
    """What fetching asks of Hugging Face's hub: a repository, its tree, and files."""

    fetched: list[str]

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._listing("/".join(parts[2:4]), tree="tree" in parts)
        folder = FOLDERS.get("/".join(parts[:2]))
        if folder is None or parts[2] != "resolve" or not (folder / parts[4]).is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = (folder / parts[4]).read_bytes()
        if self.command == "GET":
            type(self).fetched.append(parts[4])
        etag = hashlib.sha256(data).hexdigest()
        return self._answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _listing(self, name: str, tree: bool) -> None:
        folder = FOLDERS.get(name)
        if folder is None:
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        names = [path.name for path in sorted(folder.iterdir())]
        names.append("pytorch_model.bin")  # never asked for
        said: object = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        if tree:
            said = [{"type": "file", "path": n, "size": 1, "oid": n} for n in names]
        return self._answer(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    FakeHub.fetched = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield FakeHub
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetched_once_and_found_again(
    hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asyncio.run(fetch("org/vora", []))
    names = {path.name for path in FOLDERS["org/vora"].iterdir()}
    assert set(hub.fetched) == names
    weights = list((tmp_path / "cache").rglob("snapshots/*/model.safetensors"))
    assert [w.read_bytes() for w in weights] == [
        (FOLDERS["org/vora"] / "model.safetensors").read_bytes()
    ]
    hub.fetched.clear()
    asyncio.run(fetch("org/vora", []))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # out of reach: the cache will do
    asyncio.run(fetch("org/vora", []))
    assert hub.fetched == []


def test_progress_is_shown(hub: type[FakeHub]) -> None:
    command = [sys.executable, "-m", "vora_serve.engine.download", "org/vora"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip(), "config.json").exists()
    assert "100%" in done.stderr


def test_what_cannot_be_had(hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"The hub refused org/none: HTTP 404\. If it is"):
        asyncio.run(fetch("org/none", []))
    with pytest.raises(CheckpointError, match="is not a VoRA checkpoint"):
        asyncio.run(fetch("org/other", []))
    asyncio.run(fetch("org/none", ["--download-dir=/elsewhere"]))  # the engine's own affair
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EngineError, match="at revision v9 is not in the local cache"):
        asyncio.run(fetch("org/vora", ["--revision", "v9"]))
