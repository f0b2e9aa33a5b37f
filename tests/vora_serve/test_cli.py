"""The command line as a user runs it: exit codes, one sentence, no traceback."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.command_line import run
from tests.vora_serve.gateway.fake_engine import FakeEngine, running

FIXTURES = Path(__file__).parents[1] / "fixtures" / "released_vora_tiny"
COMMAND = [sys.executable, "-c", "from vora_serve.cli import main; main()"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve"], "Nothing to serve"),
        (["serve", "--model", "/does/not/exist"], "does not exist"),
        (["serve", "--model", str(FIXTURES / "teacher_clip")], "not a VoRA checkpoint"),
        (["serve", "--model", str(FIXTURES / "merged"), "--upstream", "http://x"], "not both"),
        (["serve", "--upstream", "ftp://x"], "upstream's URL starts with"),
        (["serve", "--upstream", "http://x", "--host", "0.0.0.0"], "without API keys"),
        (["serve", "--upstream", "http://x", "--host", "203.0.113.1", "--allow-anonymous"],
         "not an address of this machine"),
        (["serve", "--upstream", "http://x", "--port", "70000"], "server.port"),
        (["serve", "--upstream", "http://x", "--config", "/nowhere.yaml"], "cannot be read"),
        (["serve", "--upstream", "http://x", "--keys", "/nowhere.yaml"], "cannot be read"),
        (["serve", "--upstream", "http://x", "--allow-image-network", "10.0.0.0/99"],
         "allow_networks"),
        (["serve", "--upstream", "http://x", "--nonsense"], "No such option: --nonsense"),
        (["serve", "--modle", "x"], "Did you mean --model?"),
        (["serve", str(FIXTURES / "merged"), "--model", "x"], "Give one model"),
        (["engine"], "--model"),
        (["engine", "--model", "/does/not/exist"], "does not exist"),
        (["config", "check", "--config", "/nowhere.yaml"], "cannot be read"),
        (["nonsense"], "No such command"),
    ],
)  # fmt: skip
def test_usage_errors(arguments: list[str], message: str) -> None:
    # Not the default port, which a server on this machine may hold.
    result = run(*arguments, VORA_SERVE_SERVER__PORT="0")
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for arguments in (
            ("serve", "--upstream", "http://x", "--port", port),
            ("engine", "--model", str(FIXTURES / "merged"), "--port", port),
        ):
            result = run(*arguments)
            assert result.returncode == 2
            assert "in use" in result.stderr


def test_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("server: {port: 9000}\nimages: {max_count: 3}\n")
    assert run("config", "check", "--config", str(path)).returncode == 0
    shown = run("config", "show", "--config", str(path), VORA_SERVE_SERVER__PORT="9001")
    tree = yaml.safe_load(shown.stdout)
    assert tree["server"]["port"] == 9001, "the environment wins over the file"
    assert tree["images"]["max_count"] == 3
    assert '"additionalProperties": false' in run("config", "schema").stdout
    for content, message in (
        ("server: {prt: 1}", "there is no key server.prt; did you mean port?"),
        ("server: 5", "server"),
        ("- 1", "not a mapping"),
        ("{", "not valid YAML"),
        ("server: {host: 0.0.0.0}", "without API keys"),
        ("admission: {requests: [often]}", "rate limit is malformed"),
        ("admission: {rate_limit_storage: 'nowhere://'}", "storage nowhere://"),
        ("upstreams: ['http://user@x']", "malformed"),
        ("auth: {keys_file: /nowhere.yaml}", "cannot be read"),
    ):
        path.write_text(content)
        result = run("config", "check", "--config", str(path))
        assert result.returncode == 2
        assert message in result.stderr
    assert run("config", "check", VORA_SERVE_NONSENSE="1").returncode == 2


def test_secrets_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("upstreams: [{url: 'http://x', api_key: very-secret}]")
    assert "very-secret" not in run("config", "show", "--config", str(path)).stdout


def test_new_keys() -> None:
    first, second = run("keys", "new", "bob").stdout, run("keys", "new", "bob").stdout
    assert "sha256: " in first
    assert first != second


def test_doctor() -> None:
    result = run("doctor")
    assert result.returncode == (1 if "MISSING" in result.stdout else 0)
    assert "Python 3." in result.stdout
    assert "memory" in result.stdout


def test_gateway_commands_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import vora_serve.cli, vora_serve.serve, vora_serve.doctor\n"
        "from vora_serve.gateway import create_app, load_settings, serve\n"
        "import vora_serve.gateway.worker\n"
        "heavy = {'torch', 'vllm', 'transformers', 'model_plugin', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serving_until_told_to_stop(workers: str) -> None:
    with running(FakeEngine()) as engine, socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
        probe.close()
        process = subprocess.Popen(
            [*COMMAND, "serve", "--upstream", engine.url, "--port", port, "--workers", workers,
             "--log-format", "json"],
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 30
            while True:
                assert time.monotonic() < deadline
                assert process.poll() is None
                try:
                    if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.05)
            body = {"model": "vora-test", "messages": [{"role": "user", "content": "psst"}]}
            for _ in range(4):
                assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
            metrics = httpx.get(f"{url}/metrics").text
            counted = [
                line
                for line in metrics.splitlines()
                if line.startswith("vora_gateway_requests_total")
                and "chat" in line
                and 'status="200"' in line
            ]
            assert len(counted) == 1
            assert float(counted[0].split()[-1]) == 4, "all workers are counted together"
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in errors
        assert "psst" not in errors, "prompts are not logged"
        assert '"duration_ms"' in errors
