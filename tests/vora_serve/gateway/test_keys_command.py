"""Keys made, listed, revoked and expired by command, and the record of it."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_line import run
from tests.vora_serve.gateway.conftest import LiveGateway, Start
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_streams import until
from vora_serve.gateway.admission import read_keys

SECRET = re.compile(r"vora-[\w-]{20,}")


def new(path: Path, name: str, *more: str) -> str:
    done = run("keys", "new", name, "--file", str(path), *more)
    assert done.returncode == 0, done.stderr
    found = SECRET.search(done.stdout)
    assert found is not None
    return found[0]


def status(gateway: LiveGateway, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return gateway.client.get("/v1/models", headers=headers).status_code


def acts(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_keys_life(engine: FakeEngine, start_gateway: Start, tmp_path: Path) -> None:
    """Made, used, expired, revoked; every act is recorded, no secret is."""
    path, audit = tmp_path / "keys.yaml", tmp_path / "audit.jsonl"
    config = tmp_path / "serve.yaml"
    tree = {
        "auth": {"keys_file": str(path), "reload_interval_s": 0.05},
        "logging": {"audit_file": str(audit), "access": False},
    }
    config.write_text(yaml.safe_dump(tree))
    common = ("--config", str(config))
    alice = new(path, "alice", *common)
    gateway = start_gateway(engine.url, **tree)
    bob = new(path, "bob", "--group", "team", *common)
    carol = new(path, "carol", *common)
    until(lambda: status(gateway, carol) == 200)
    assert run("keys", "revoke", "alice", *common).returncode == 0
    assert run("keys", "expire", "bob", *common).returncode == 0
    assert run("keys", "expire", "carol", "--days", "1", *common).returncode == 0
    until(lambda: status(gateway, alice) == status(gateway, bob) == 401)
    assert status(gateway, carol) == 200
    answer = gateway.client.get("/v1/models", headers={"x-api-key": alice})
    assert answer.json()["error"]["message"] == "The API key has been revoked."
    listed = run("keys", "list", *common).stdout
    rows = {line.split()[0]: line.split() for line in listed.splitlines()}
    assert rows["alice"][2] == "revoked"
    assert rows["bob"][1:3] == ["team", "expired"]
    assert rows["carol"][2] == "valid"
    assert not any(key.sha256 in listed for key in read_keys(path))
    recorded = audit.read_text()
    assert [act["act"] for act in acts(audit) if act["act"] != "keys.reloaded"] == [
        *["key.created"] * 3,
        "key.revoked",
        *["key.expires"] * 2,
    ]
    until(lambda: sum(act["act"] == "keys.reloaded" for act in acts(audit)) >= 1)
    assert all(act["time"] and act["user"] and act["pid"] for act in acts(audit))
    for secret in (alice, bob, carol, *(key.sha256 for key in read_keys(path))):
        assert secret not in recorded
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


BLOCK = """\
# Our keys. Ask Ada before you change anything.
keys:
  # the first customer
  - name: a   # pays yearly
    sha256: {a}
    expires: 2030-01-01   # as agreed
  - sha256: {b}
    name: b
    models: [x, y]
"""
FLOW = "keys: [{{name: a, sha256: {a}}}, {{sha256: {b}, name: b}}]  # short\n"
DENSE = "keys:\n- name: a\n  sha256: {a}\n- {{name: b, sha256: {b}}}\n\n# the end\n"


@pytest.mark.parametrize("text", [BLOCK, FLOW, DENSE], ids=["block", "flow", "dense"])
def test_key_files_as_people_write_them(tmp_path: Path, text: str) -> None:
    """Whatever the form, the entry changes; comments and everything else stay."""
    path = tmp_path / "keys.yaml"
    path.write_text(text.format(a="a" * 64, b="b" * 64))
    path.chmod(0o640)
    comments = re.findall("#.*", path.read_text())
    for name in ("a", "b"):
        assert run("keys", "expire", name, "--at", "2031-02-03", "--file", str(path)).stderr == ""
        assert run("keys", "revoke", name, "--file", str(path)).returncode == 0
        assert run("keys", "revoke", name, "--file", str(path)).returncode == 0, "twice is once"
    assert re.findall("#.*", path.read_text()) == comments
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    if text is not FLOW:
        new(path, "c")
        assert re.findall("#.*", path.read_text()) == comments
    keys = {key.name: key for key in read_keys(path)}
    assert keys["a"].revoked
    assert keys["b"].revoked
    assert str(keys["b"].expires) == "2031-02-03 00:00:00+00:00"
    assert keys["a"].sha256 == "a" * 64
    if text is BLOCK:
        assert keys["b"].models == ["x", "y"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("revoke", "nobody"), "has no key 'nobody'"),
        (("new", "a"), "has a key 'a' already"),
        (("new", "a b"), "name"),
        (("expire", "a", "--at", "tomorrow"), "time is malformed"),
        (("expire", "a", "--days", "1e300"), "time is malformed"),
        (("expire", "a", "--at", "2030-01-01", "--days", "1"), "not both"),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(BLOCK.format(a="a" * 64, b="b" * 64))
    done = run("keys", *arguments, "--file", str(path))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert path.read_text() == BLOCK.format(a="a" * 64, b="b" * 64)
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.yaml"]


def test_no_key_file_is_named() -> None:
    for act in (("list",), ("revoke", "a"), ("expire", "a")):
        done = run("keys", *act)
        assert done.returncode == 2
        assert "--file" in done.stderr


def test_an_audit_log_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(f"logging: {{audit_file: {tmp_path}/absent/audit.jsonl}}")
    done = run("config", "check", "--config", str(config))
    assert done.returncode == 2
    assert "audit log" in done.stderr


def test_reloading_and_stopping_are_recorded(engine: FakeEngine, tmp_path: Path) -> None:
    from tests.vora_serve.gateway.real_engine import command

    audit, config = tmp_path / "audit.jsonl", tmp_path / "serve.yaml"
    tree = {"upstreams": [engine.url], "logging": {"audit_file": str(audit)}}
    config.write_text(yaml.safe_dump(tree))
    with command(tmp_path, "--config", str(config)) as served:
        served.process.send_signal(signal.SIGHUP)
        until(lambda: "configuration.reloaded" in audit.read_text())
        served.process.send_signal(signal.SIGTERM)
        try:
            served.process.wait(60)
        except subprocess.TimeoutExpired:
            served.process.kill()
        assert [act["act"] for act in acts(audit)] == ["configuration.reloaded", "gateway.stopped"]
