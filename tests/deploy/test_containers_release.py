"""The release script for real, into a registry on loopback: ``make test-containers``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.compose import ROOT
from tests.deploy.conftest import Images
from tests.deploy.daemon import Daemon
from tests.deploy.tools import tool
from tests.deploy.topology import free_port, wait_for

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

_CONFIG = """
version: 0.1
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "127.0.0.1:%d"}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Debian's registry, empty; its address."""
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(_CONFIG % (tmp_path / "registry", port))
    command = [tool("docker-registry", "docker-registry"), "serve", str(config)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for("the registry", lambda: answers(f"http://127.0.0.1:{port}/v2/"), 60)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_release_is_published_by_digest(
    daemon: Daemon, images: Images, registry: str, tmp_path: Path
) -> None:
    base = f"{registry}/python:stand-in"
    daemon.docker("tag", images.base, base)
    daemon.docker("push", base)
    clone = tmp_path / "clone"

    def git(*arguments: str) -> None:
        own = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *own, *arguments], cwd=clone, check=True, capture_output=True)

    # What is tested is what lies here, committed or not.
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    changes = clone / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("## Unreleased", "## 0.1.0 (2026-01-01)"))
    git("init")
    git("add", "--all")
    git("commit", "--message", "a release")
    git("tag", "v0.1.0")
    arguments = images.packages.arguments
    more = {
        "PATH": f"/usr/bin:{daemon.environment['PATH']}",
        "TARGETS": "gateway",
        "PYTHON_IMAGE": base,
        "BUILD_ARGS": " ".join(arguments),
        "AUDIT": "skip",
    }
    done = daemon.run([str(clone / "docker" / "release.sh"), f"{registry}/"], more)
    assert done.code == 0, done.out[-4000:]
    dist = clone / "dist"
    (published,) = (dist / "images.txt").read_text().split()
    assert published.startswith(f"{registry}/vora-serve-gateway@sha256:")
    digest = published.partition("@")[2]
    env = (dist / "images.env").read_text()
    assert env == f"REGISTRY={registry}/\nTAG=0.1.0\nGATEWAY_DIGEST=@{digest}\n"
    assert f"{registry}/python@sha256:" in (dist / "bases.txt").read_text()
    bill = json.loads((dist / "sbom-gateway.json").read_text())
    assert "fastapi" in {part["name"] for part in bill["components"]}
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=dist, check=True)
    # What was published is what the digest names.
    daemon.docker("pull", published)
    labels = daemon.inspect(published)["Config"]["Labels"]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert labels["org.opencontainers.image.revision"] == head.stdout.strip()
