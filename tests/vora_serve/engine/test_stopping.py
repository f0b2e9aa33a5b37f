"""How an engine's server stops. With a real engine: tests/deploy/test_topology.py."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

LIMIT_S = 240.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def server(release: Path, timeout_s: int) -> Iterator[tuple[Any, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, number = int(listener.getsockname()[1]), listener.fileno()
        module = "tests.vora_serve.engine.stopping_child"
        command = [sys.executable, "-m", module, str(number), str(release), str(timeout_s)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[3], pass_fds=[number])
    try:
        until(lambda: not refused(port))
        yield process, port
    finally:
        process.kill()
        process.wait(LIMIT_S)


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


@contextmanager
def answer(port: int) -> Iterator[Iterator[str]]:
    """The lines of an answer that has begun."""
    with (
        httpx.Client(timeout=LIMIT_S, trust_env=False) as client,
        client.stream("GET", f"http://127.0.0.1:{port}/") as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == "begun"
        yield lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_and_nothing_new_is_taken(tmp_path: Path, number: int) -> None:
    release = tmp_path / "release"
    with server(release, 600) as (process, port), answer(port) as lines:
        process.send_signal(number)
        until(lambda: refused(port))
        assert process.poll() is None
        release.touch()
        assert list(lines) == ["ended"]
        assert process.wait(LIMIT_S) == 0


def test_it_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    with server(tmp_path / "never", 1) as (process, port), answer(port) as lines:
        process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
        assert process.wait(LIMIT_S) == 0


def test_a_second_signal_ends_the_waiting(tmp_path: Path) -> None:
    with server(tmp_path / "never", 600) as (process, port), answer(port):
        process.send_signal(signal.SIGTERM)
        until(lambda: refused(port))
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0


def test_without_a_time_to_wait_it_stays_as_it_was(tmp_path: Path) -> None:
    """Also the control: these are the handlers that are otherwise replaced."""
    with server(tmp_path / "never", 0) as (process, port), answer(port):
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 7
