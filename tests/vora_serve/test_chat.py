"""The terminal's chat, against a live gateway in front of a fake engine."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.vora_serve.gateway.conftest import engine, gateway, make_image, start_gateway

from tests.vora_serve.gateway.conftest import LiveGateway, Start  # isort: skip
from tests.vora_serve.gateway.fake_engine import FakeEngine
from vora_core.errors import VoRAError
from vora_serve.cli import app
from vora_serve.gateway.admission import hash_key

__all__ = ["engine", "gateway", "start_gateway"]

COMMAND = [sys.executable, "-c", "from vora_serve.cli import main; main()", "chat"]


def run(*arguments: str, typed: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=typed, capture_output=True, text=True, timeout=60,
        env={**os.environ, **env},
    )  # fmt: skip


def test_one_question_with_a_image(
    gateway: LiveGateway, engine: FakeEngine, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(make_image())
    result = run("--base-url", gateway.url, "--image", str(file), "--seed", "3", "what is it?")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "a red circle\n"
    assert "image tokens" in result.stderr
    assert "\x1b" not in result.stderr, "no colours outside a terminal"
    sent = engine.seen[-1]
    assert sent["seed"] == 3
    assert sent["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")


def test_a_question_can_be_piped_in(gateway: LiveGateway) -> None:
    result = run("--base-url", f"{gateway.url}/v1", typed="hello\n")
    assert (result.returncode, result.stdout) == (0, "a red circle\n")


def test_faults_are_one_sentence(
    engine: FakeEngine, start_gateway: Start, gateway: LiveGateway, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys:\n  - {{name: a, sha256: {hash_key('sk-good')}}}\n", encoding="utf-8")
    keyed = start_gateway(engine.url, auth={"keys_file": str(keys)})
    text = tmp_path / "a.txt"
    text.write_text("no image", encoding="utf-8")
    cases = [
        (["--base-url", "http://127.0.0.1:9", "x"], 1, "No server answers"),
        (["--base-url", keyed.url, "x"], 1, "VORA_API_KEY"),
        (["--base-url", gateway.url, "--model", "no", "x"], 2, "Available: vora-test"),
        (["--base-url", gateway.url, "--image", "no.png", "x"], 2, "does not exist"),
        (["--base-url", gateway.url, "--image", str(text), "x"], 2, "is not an image"),
        (["--base-url", "ftp://x", "x"], 2, "not the URL"),
        (["--base-url", gateway.url], 2, "contains no question"),
    ]
    for arguments, code, sentence in cases:
        # In this process: each new one would import everything again.
        result = CliRunner().invoke(app, ["chat", *arguments])
        assert isinstance(result.exception, VoRAError), (arguments, result.output)
        assert result.exception.exit_code == code
        assert sentence in str(result.exception)
    good = CliRunner(env={"VORA_API_KEY": "sk-good"}).invoke(
        app, ["chat", "--base-url", keyed.url, "x"]
    )
    assert good.exit_code == 0, good.output


def test_an_answer_that_breaks_off_fails(start_gateway: Start) -> None:
    from tests.vora_serve.gateway.fake_engine import running

    with running(FakeEngine(die_after=1)) as dying:
        result = run("--base-url", start_gateway(dying.url).url, "x")
    assert result.returncode == 1
    assert "before the answer was complete" in result.stderr


class Typist:
    """Types at a terminal and reads what appears."""

    def __init__(self, *arguments: str) -> None:
        self.fd, child = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=child, stdout=child, stderr=child, close_fds=True,
            env={**os.environ, "TERM": "xterm"}, start_new_session=True,
        )  # fmt: skip
        os.close(child)
        self.seen = ""

    def until(self, text: str) -> str:
        began = time.monotonic()
        before = len(self.seen)
        while text not in self.seen[before:]:
            assert time.monotonic() - began < 40, self.seen
            try:
                self.seen += os.read(self.fd, 65536).decode("utf-8", "replace")
            except OSError:
                pytest.fail(f"it ended: {self.seen}")
        return self.seen[before:]

    def type(self, line: str) -> None:
        os.write(self.fd, f"{line}\n".encode())


def test_a_conversation_in_a_terminal(
    gateway: LiveGateway, engine: FakeEngine, tmp_path: Path
) -> None:
    file = tmp_path / "a b.png"
    file.write_bytes(make_image())
    engine.words = ["red", " \x1b[31mbell\x07", " end"]
    typist = Typist("--base-url", gateway.url)
    assert "\x1b[2m" in typist.until("> "), "notes are dimmed on a terminal"
    typist.type(f"/image {file}")
    typist.until("[1 image] > ")
    typist.type("/system Be short.")
    typist.until("> ")
    typist.type("what is it?")
    seen = typist.until("tokens in")
    assert "red [31mbell end" in seen, "control characters of an answer do not reach the terminal"
    typist.type("and now?")
    typist.until("tokens in")
    sent = engine.seen[-1]["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    assert sent[1]["content"][0]["type"] == "image_url"
    typist.type("/retry")
    typist.until("tokens in")
    assert engine.seen[-1]["messages"] == sent
    for line, told in [
        ("/image no.png", "does not exist"),
        ("/model", "models: vora-test"),
        ("/nonsense", "/quit"),
    ]:
        typist.type(line)
        typist.until(told)
    typist.type("/new")
    typist.type("alone")
    typist.until("tokens in")
    assert [message["role"] for message in engine.seen[-1]["messages"]] == ["system", "user"]
    typist.type("/quit")
    assert typist.process.wait(20) == 0
    os.close(typist.fd)
