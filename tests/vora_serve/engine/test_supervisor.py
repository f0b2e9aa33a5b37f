"""The supervisor, with a fake child process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from vora_core.errors import EngineError
from vora_serve.engine import EngineLaunch, EngineSupervisor

CHILD = [sys.executable, str(Path(__file__).with_name("fake_child.py"))]


@pytest.fixture(autouse=True)
def _fake_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vora_serve.engine.launch.engine_command", lambda: CHILD)


def supervisor(*args: str, **more: Any) -> EngineSupervisor:
    launch = EngineLaunch("model", ["name"], Path("unset"), args)
    options: dict[str, Any] = {"backoff_s": 0.05, "stop_timeout_s": 5, **more}
    return EngineSupervisor(launch, **options)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def test_start_and_stop() -> None:
    async def scenario() -> None:
        lines: list[str] = []
        engine = supervisor(progress=lines.append)
        mode = engine.socket.parent.stat().st_mode & 0o777
        assert mode == 0o700
        await engine.start()
        pid = engine.pid
        assert pid is not None
        assert lines[-1].startswith("engine ready")
        await engine.stop()
        assert not alive(pid)
        assert not engine.socket.parent.exists()

    run(scenario)


def test_restart_after_a_kill() -> None:
    async def scenario() -> None:
        downs: list[float] = []
        engine = supervisor(on_down=lambda: downs.append(time.monotonic()))
        await engine.start()
        for count in (1, 2):
            pid = engine.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda old=pid: engine.pid not in (None, old))  # type: ignore[misc]
            await until(engine.socket.exists)
            assert engine.restarts == count
        assert len(downs) == 2
        await engine.stop()

    run(scenario)


def test_a_hung_engine_is_replaced() -> None:
    async def scenario() -> None:
        engine = supervisor(hang_timeout_s=0.5)
        await engine.start()
        pid = engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: engine.pid not in (None, pid))
        assert not alive(pid)
        await engine.stop()

    run(scenario)


def test_an_engine_that_is_healthy_but_generates_nothing() -> None:
    async def scenario() -> None:
        engine = supervisor("--mute", hang_timeout_s=0.5)
        await engine.start()
        pid = engine.pid
        await until(lambda: engine.pid not in (None, pid))
        await engine.stop()

    run(scenario)


def test_an_engine_that_is_busy_is_left_alone() -> None:
    """Its other requests' tokens grow, though nobody answers the supervisor's own in time."""

    async def scenario() -> None:
        engine = supervisor("--busy", hang_timeout_s=0.5)
        await engine.start()
        pid = engine.pid
        asked = 0
        generates = engine.generates

        async def count() -> bool:
            nonlocal asked
            answered = await generates()
            assert not answered
            asked += 1
            return answered

        engine.generates = count  # type: ignore[method-assign]
        await until(lambda: asked >= 3)
        assert engine.pid == pid
        assert engine.restarts == 0
        await engine.stop()

    run(scenario)


def test_the_first_start_fails_with_a_reason() -> None:
    async def scenario() -> None:
        engine = supervisor("--fail", "no room for the KV cache")
        with pytest.raises(EngineError, match="no room for the KV cache"):
            await engine.start()
        assert engine.pid is None
        await engine.stop()

    run(scenario)


def test_the_start_has_a_time_limit() -> None:
    async def scenario() -> None:
        engine = supervisor("--deaf", start_timeout_s=0.5)
        with pytest.raises(EngineError, match="did not answer within"):
            await engine.start()
        assert engine.pid is None
        await engine.stop()

    run(scenario)


def test_a_stubborn_engine_is_killed() -> None:
    async def scenario() -> None:
        engine = supervisor("--stubborn", stop_timeout_s=0.3)
        await engine.start()
        pid = engine.pid
        assert pid is not None
        await engine.stop()
        assert not alive(pid)

    run(scenario)


def test_stopping_while_it_starts() -> None:
    async def scenario() -> None:
        engine = supervisor("--deaf")
        starting = asyncio.create_task(engine.start())
        await until(lambda: engine.pid is not None)
        pid = engine.pid
        assert pid is not None
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await engine.stop()
        assert not alive(pid)

    run(scenario)


def test_the_command_line_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    launch = EngineLaunch("model", ["a", "b"], Path("s"), ["--max-model-len", "10"], max_images=3)
    command = launch.command()
    text = " ".join(command)
    assert "--allowed-media-domains fetching.invalid" in text
    assert '--limit-mm-per-prompt {"image": 3, "video": 0, "audio": 0}' in text
    assert "--served-model-name a b" in text
    assert "--enable-log-requests" not in text
    assert "--trust-request-chat-template" not in text
    assert "--trust-request-mm-kwargs" not in text
    assert command[-2:] == ["--max-model-len", "10"]
    environment = launch.environment()
    assert environment["VLLM_SERVER_DEV_MODE"] == "0"
    assert environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    assert 1 <= int(environment["VLLM_CPU_KVCACHE_SPACE"]) <= 4
    own = EngineLaunch("model", ["a"], Path("s"), ["--served-model-name", "mine"]).command()
    assert own.count("--served-model-name") == 1
