"""The process behind the view of attention: started by a question, ended by silence."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import psutil
import pytest
from starlette.testclient import TestClient

from tests.vora_serve.explain.fake_process import ask, listening
from tests.vora_serve.explain.test_explain import FIXTURES, data_url, question
from tests.vora_serve.gateway.fake_engine import FakeEngine, running
from tests.vora_serve.gateway.real_engine import serving
from vora_core.errors import ConfigError
from vora_serve.explain import on_demand
from vora_serve.explain.on_demand import OnDemand, is_small
from vora_serve.gateway import create_app, load_settings
from vora_serve.gateway.listen import bind_unix


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(main())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_nothing_runs_until_somebody_asks_and_then_one_process() -> None:
    async def test() -> None:
        async with listening() as explainer:
            await asyncio.sleep(0.2)
            assert explainer.pid is None
            answers = await asyncio.gather(*(ask(explainer) for _ in range(8)))
            assert set(answers) == {explainer.pid}
            pid = answers[0]
        assert not alive(pid)
        assert not explainer.socket.exists()

    run(test)


def test_after_silence_the_next_question_starts_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "_PAUSE_S", 0)

    async def test() -> None:
        async with listening("idle") as explainer:
            first = await ask(explainer)
            while explainer.pid is not None:
                await asyncio.sleep(0.02)
            assert await ask(explainer) not in (0, first)

    run(test)


def test_one_that_breaks_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(on_demand, "_PAUSE_S", 0)

    async def test() -> None:
        async with listening("break") as explainer:
            assert await asyncio.gather(ask(explainer), ask(explainer)) == [0, 0]
            explainer.how = ""
            while not await ask(explainer):  # it is tried again
                await asyncio.sleep(0.02)

    run(test)
    assert "out of luck" in caplog.text


def test_it_ends_with_the_server_however_that_ends() -> None:
    program = (
        "import asyncio, sys\n"
        "from tests.vora_serve.explain.fake_process import ask, listening\n"
        "async def main():\n"
        "    async with listening() as explainer:\n"
        "        print(await ask(explainer), explainer.socket.parent, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )

    async def test() -> None:
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program), stdout=asyncio.subprocess.PIPE
        )
        assert server.stdout is not None
        pid_text, folder = (await server.stdout.readline()).decode().split()
        pid = int(pid_text)
        assert alive(pid)
        server.kill()
        await server.wait()
        while alive(pid):
            await asyncio.sleep(0.05)
        shutil.rmtree(folder)  # one that is killed cannot

    run(test)


def test_small_is_what_is_here_and_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FIXTURES / "merged"
    assert is_small(str(model))
    assert not is_small("nobody/has-this")
    assert not is_small(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    assert not is_small(str(tmp_path))
    monkeypatch.setattr(on_demand, "SMALL_BYTES", 1000)
    assert not is_small(str(model))


def test_sockets_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bind_unix(path), pytest.raises(ConfigError, match="Another process listens"):
        bind_unix(path)
    bind_unix(path).close()  # what a killed process leaves is replaced
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    for name, what in (("file", "in use"), ("none/a.sock", "No such file")):
        with pytest.raises(ConfigError, match=what):
            bind_unix(tmp_path / name)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize(
    ("host", "named"), [("127.0.0.1", True), ("0.0.0.0", False)], ids=["here", "elsewhere"]
)
def test_where_the_model_is_large_the_page_names_the_command(
    tmp_path: Path, host: str, named: bool
) -> None:
    place = tmp_path / "explain.sock"
    flags = {
        "engine": {"model": "big model"},
        "server": {"host": host},
        "playground": {"explain_url": f"unix:{place}"},
    }
    with running(FakeEngine()) as engine:
        settings = load_settings(flags={**flags, "upstreams": [engine.url]})
        with TestClient(create_app(settings)) as client:
            assert client.get("/playground/settings.json").json()["explain"] == "command"
            answer = client.post("/playground/explain", json=question(data_url("a.png")))
            assert answer.status_code == 503
            error = answer.json()["error"]
            assert error["code"] == "explain_command"
            command = f"explain --model 'big model' --listen unix:{place}"
            assert (command in error["message"]) == named
            assert (str(tmp_path) in error["message"]) == named
            with bind_unix(place):  # somebody has typed it
                told = client.get("/playground/settings.json").json()
                assert told["explain"] == "ready"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_real_process_answers_through_the_gateway_and_ends_when_idle() -> None:
    async def test() -> None:
        explainer = OnDemand(str(FIXTURES / "merged"), 1.0)
        explainer.listen()
        try:
            transport = httpx.AsyncHTTPTransport(uds=str(explainer.socket))
            async with httpx.AsyncClient(transport=transport, timeout=120) as client:
                where = "http://localhost/explain"
                answer = await client.post(where, json=question(data_url("a.png")))
                assert answer.status_code == 200, answer.text
                assert answer.json()["answer"] == "hello"
                bad = await client.post(where, json=question("data:image/png;base64,AAAA"))
                assert bad.status_code == 400
            while explainer.pid is not None:
                await asyncio.sleep(0.1)
        finally:
            await explainer.stop()

    asyncio.run(asyncio.wait_for(test(), 200))


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(500)
def test_serve_starts_it_with_the_first_question_and_stops_it(tmp_path: Path) -> None:
    with serving(tmp_path, name="vora-test") as served:
        gateway = psutil.Process(served.process.pid)

        def explainers() -> list[psutil.Process]:
            return [p for p in gateway.children() if "vora_serve.explain" in p.cmdline()]

        told = httpx.get(f"{served.url}/playground/settings.json").json()
        assert told["explain"] == "ready"
        assert explainers() == []
        where = f"{served.url}/playground/explain"
        answer = httpx.post(where, json=question(data_url("a.png")), timeout=120)
        assert answer.status_code == 200, answer.text
        (process,) = explainers()
        assert any("libtorch" in file.path for file in process.memory_maps())
        assert not any("libtorch" in file.path for file in gateway.memory_maps())
    assert not process.is_running()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_that_cannot_be_loaded_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        explainer = OnDemand(str(tmp_path), 1.0)
        explainer.listen()
        try:
            transport = httpx.AsyncHTTPTransport(uds=str(explainer.socket))
            async with httpx.AsyncClient(transport=transport, timeout=120) as client:
                where = "http://localhost/explain"
                answer = await client.post(where, json=question(data_url("a.png")))
            assert answer.status_code == 503
            assert "cannot be looked into" in answer.json()["error"]["message"]
            assert str(tmp_path) not in answer.text
            while explainer.pid is not None:
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
        finally:
            await explainer.stop()

    asyncio.run(asyncio.wait_for(test(), 200))
    assert "ended with code 1" in caplog.text
