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
from tests.vora_serve.gateway.pdf_files import circle
from tests.vora_serve.gateway.real_engine import command

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

    ``VORA_CLIENTS_URL`` names one that runs already, with the model ``vora-demo``.
    """
    with _gateway(tmp_path_factory.mktemp("tour")) as url:
        yield url
    if os.environ.get("VORA_CLIENTS_PAGE") and len(VERSIONS) == len(CLIENTS):
        report.write(PAGE, report.page(OUTCOMES, VERSIONS, KNOWN))


@contextmanager
def _gateway(folder: Path) -> Iterator[str]:
    from vora_serve.gateway.admission import hash_key

    running = os.environ.get("VORA_CLIENTS_URL")
    if running:
        yield running
        return
    keys = folder / "keys.yaml"
    keys.write_text(f"keys: [{{name: tour, sha256: {hash_key(KEY)}}}]")
    config = folder / "config.yaml"
    config.write_text(f"batches: {{folder: {folder / 'batches'}}}")
    model = ["--model", str(DEMO), "--served-model-name", "vora-demo"]
    model += ["--keys", str(keys), "--config", str(config)]
    with command(folder, *model, "--", "--enforce-eager") as started:
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
def taken(client: Client, url: str, image: Path) -> dict[str, Outcome]:
    """What a client's tour says of each check."""
    call = [*environments.command(client), url, "vora-demo", str(image), KEY, *client.arguments]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(image.parent),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
    }
    result = subprocess.run(call, capture_output=True, text=True, timeout=300, env=env)
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
def test_tour(served: str, image: Path, client: Client, check: str) -> None:
    outcome = taken(client, served, image)[check]
    fault = KNOWN.get((client.id, check))
    if fault is not None and not outcome.ok:
        pytest.xfail(f"{fault.why} ({fault.whose})")
    assert fault is None, "this check does not fail any more: take it out of faults.toml"
    assert outcome.ok, outcome.detail


def test_every_known_fault_names_a_check() -> None:
    ids = {client.id for client in CLIENTS}
    assert all(client in ids and check in CHECKS for client, check in KNOWN)
