"""Each client takes its tour once, each check is a test; ``make test-clients`` runs them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.clients import environments, report
from tests.clients.report import Outcome
from tests.clients.roster import CHECKS, CLIENTS, HERE, Client, faults
from tests.clients.scripted import ScriptedEngine
from tests.vora_serve.gateway.fake_engine import ThreadServer, running
from tests.vora_serve.gateway.pdf_files import circle
from tests.vora_serve.gateway.real_engine import command
from vora_serve.gateway import create_app, load_settings
from vora_serve.gateway.admission import hash_key

pytestmark = pytest.mark.clients

ROOT = HERE.parents[1]
DEMO = ROOT / "vora_serve" / "demo" / "checkpoint"
PAGE = ROOT / "docs" / "clients.md"
KEY = "vora-tour"
KNOWN = faults()
OUTCOMES: dict[tuple[str, str], Outcome] = {}
VERSIONS: dict[str, str] = {}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway with keys, in front of the demo's engine; writes the page when all is done.

    ``VORA_CLIENTS_URL`` names one that runs already, with the model ``vora-demo`` and a context of
    4,096 tokens.
    """
    with _gateway(tmp_path_factory.mktemp("tour")) as url:
        yield url
    if os.environ.get("VORA_CLIENTS_PAGE") and len(VERSIONS) == len(CLIENTS):
        report.write(PAGE, report.page(OUTCOMES, VERSIONS, KNOWN))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway in front of the engine that makes the calls which the prompt lists."""
    keys = {"keys_file": str(_keys(tmp_path_factory.mktemp("scripted")))}
    with running(ScriptedEngine(model="vora-demo")) as engine:
        settings = load_settings(flags={"upstreams": [engine.url], "auth": keys})
        server = ThreadServer(create_app(settings))
        yield f"http://127.0.0.1:{server.start()}"
        server.stop()


def _keys(folder: Path) -> Path:
    keys = folder / "keys.yaml"
    keys.write_text(f"keys: [{{name: tour, sha256: {hash_key(KEY)}}}]")
    return keys


@contextmanager
def _gateway(folder: Path) -> Iterator[str]:
    given = os.environ.get("VORA_CLIENTS_URL")
    if given:
        yield given
        return
    keys = _keys(folder)
    config = folder / "config.yaml"
    config.write_text(f"batches: {{folder: {folder / 'batches'}}}")
    model = ["--model", str(DEMO), "--served-model-name", "vora-demo"]
    model += ["--keys", str(keys), "--config", str(config)]
    # What agents say of themselves and their tools is longer than the context that the model
    # was trained on.
    longer = ["--max-model-len", "4096", "--hf-overrides", '{"max_position_embeddings": 4096}']
    with command(folder, *model, "--", "--enforce-eager", *longer) as started:
        yield started.url


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red circle, of the world that the demo's model knows; beside it, the same as a PDF."""
    path = tmp_path_factory.mktemp("image") / "circle.png"
    image = Image.new("RGB", (84, 84), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 60, 60), fill=(220, 40, 40))
    image.save(path)
    path.with_suffix(".pdf").write_bytes(circle())
    return path


@cache
def taken(client: Client, url: str, scripted: str, image: Path) -> dict[str, Outcome]:
    """What a client's tour says of each check."""
    call = [*environments.command(client), url, "vora-demo", str(image), KEY, *client.arguments]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(image.parent),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "VORA_SCRIPTED": scripted,
    }
    result = subprocess.run(call, capture_output=True, text=True, timeout=400, env=env)
    VERSIONS[client.id] = environments.version(client)
    found: dict[str, Outcome] = {}
    for line in result.stdout.splitlines():
        if line.startswith('{"check"'):
            told = json.loads(line)
            found[told["check"]] = Outcome(told["ok"], told["detail"])
    for check in set(CHECKS).difference(client.without):
        found.setdefault(check, Outcome(False, f"no result: {result.stderr[-300:]}"))
        OUTCOMES[client.id, check] = found[check]
    return found


@pytest.mark.parametrize(
    ("client", "check"),
    [(client, check) for client in CLIENTS for check in CHECKS if check not in client.without],
    ids=lambda value: value.id if isinstance(value, Client) else value,
)
def test_tour(served: str, scripted: str, image: Path, client: Client, check: str) -> None:
    outcome = taken(client, served, scripted, image)[check]
    fault = KNOWN.get((client.id, check))
    if fault is not None and not outcome.ok:
        pytest.xfail(f"{fault.why} ({fault.whose})")
    assert fault is None, "this check does not fail any more: take it out of faults.toml"
    assert outcome.ok, outcome.detail


def test_every_known_fault_names_a_check() -> None:
    ids = {client.id for client in CLIENTS}
    assert all(client in ids and check in CHECKS for client, check in KNOWN)
