"""The means of the topology's test see what they are there to see."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy import compose, container
from tests.deploy.load import Load
from tests.deploy.topology import Service

SERVICES = compose.services(compose.env_of("cpu-multi"), ("observability",))
PLACES = ("/tmp/a", "/dev/shm/a", f"{container.HOME}/a", "/a", "/root/a", "/mnt/a")
LOOK = f"""
import json, os, sys
able = []
for path in (*{PLACES!r}, sys.argv[1] + "/a"):
    try:
        open(path, "w").close()
    except OSError:
        continue
    able.append(path.replace(sys.argv[1], "own"))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([os.getuid(), able, int(status["CapEff"], 16), int(status["NoNewPrivs"])]))
"""


@pytest.mark.parametrize(
    ("name", "user", "writes"),
    [
        ("gateway", 65532, {"/tmp/a", "/dev/shm/a"}),
        ("engine-cpu", 65532, {"/tmp/a", "/dev/shm/a", "/mnt/cache/a"}),
        ("redis", 999, {"/dev/shm/a", "own/a"}),
        ("prometheus", 65534, {"/dev/shm/a", "own/a"}),
    ],
)
def test_a_contained_process(tmp_path: Path, name: str, user: int, writes: set[str]) -> None:
    if not container.possible():
        pytest.skip("processes cannot be contained here")
    for hidden in ("/tmp", "/root"):
        if Path(sys.executable).is_relative_to(hidden):
            pytest.skip(f"contained processes do not see {hidden}, where this environment is")
    own = tmp_path / name
    own.mkdir()
    command = [sys.executable, "-I", "-c", LOOK, str(own)]
    contained = container.contain(SERVICES[name], command, own, "own/a" in writes)
    for arguments, control in ((contained, False), (command, True)):
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        uid, able, capabilities, closed = json.loads(done.stdout)
        if control:  # without: root, who writes where there is a place
            assert (uid, closed) == (0, 0)
            assert capabilities
            assert {"/a", "/root/a", "own/a"} <= set(able)
            for path in able:
                Path(path.replace("own", str(own), 1)).unlink()
        else:
            assert (uid, capabilities, closed) == (user, 0, 1)
            assert set(able) == writes


def test_what_outlives_its_parent_is_seen(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 61 & exec sleep 60"]
    service = Service("x", command, {"PATH": "/bin:/usr/bin"}, "127.0.0.1", 1, tmp_path / "log")
    service.spawn()
    try:
        deadline = time.monotonic() + 30
        while service.others() != ["sleep 61"]:
            assert time.monotonic() < deadline
        service.signal(signal.SIGTERM)
        assert service.process is not None
        service.process.wait(30)
        assert service.others() == ["sleep 61"]
    finally:
        service.signal(signal.SIGKILL, group=True)


def _event(reason: str | None) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {}, "finish_reason": reason}]})


@contextmanager
def answering(lines: Sequence[str], status: int = 200) -> Iterator[str]:
    """A server that gives this stream to whoever asks, and closes the connection."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write("".join(f"{line}\n\n" for line in lines).encode())

        def log_message(self, *_: object) -> None:
            """Silence."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("lines", "status", "kind"),
    [
        ([_event(None), _event("length"), "data: [DONE]"], 200, "finished"),
        ([_event(None), _event("length")], 200, "cut"),
        ([_event(None)], 200, "cut"),
        # In good order, but given up on.
        ([_event("abort"), "data: [DONE]"], 200, "cut"),
        ([_event(None), 'data: {"error": {"message": "broken"}}'], 200, "cut"),
        ([], 502, "cut"),
        ([], 503, "refused"),
    ],
)
def test_load_tells_what_became_of_a_stream(lines: list[str], status: int, kind: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    with answering(lines, status) as url:
        load = Load(url, body, 1)
        load.once(body)
    tally = load.tally
    found = {"finished": tally.finished, "refused": tally.refused, "cut": len(tally.cut)}
    assert found == {"finished": 0, "refused": 0, "cut": 0} | {kind: 1}
