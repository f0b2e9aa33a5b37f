"""What the playground's tests share: a live gateway in front of a fake engine, and node."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vora_serve.gateway.conftest import engine, gateway, start_gateway

__all__ = ["engine", "gateway", "start_gateway"]

HERE = Path(__file__).parent
STATIC = Path(__file__).parents[2] / "vora_serve" / "gateway" / "playground" / "static"
DEMO = Path(__file__).parents[2] / "vora_serve" / "demo" / "checkpoint"

SPECIALISTS = DEMO.with_name("specialists")


def need(what: str) -> None:
    """Skip, or fail where the browser's tests are required (``VORA_BROWSER=required``)."""
    if os.environ.get("VORA_BROWSER") == "required":
        pytest.fail(f"{what}, and VORA_BROWSER=required")
    pytest.skip(what)


@pytest.fixture(scope="session")
def node() -> str:
    """The node program."""
    found = shutil.which("node")
    if found is None:
        need("node is not installed")
    assert found is not None
    return found


def find_browser(kind: str) -> str:
    """A ``chromium`` or ``firefox``."""
    names = {
        "chromium": ("chromium", "chromium-browser", "google-chrome"),
        "firefox": ("firefox-esr", "firefox"),
    }
    for name in names[kind]:
        if found := shutil.which(name):
            return found
    need(f"no {kind} is installed")
    raise AssertionError


@pytest.fixture(scope="session")
def modules(node: str) -> Path:
    """npm packages as the lock file has them, installed once beside the tests."""
    folder = HERE / "node_modules"
    done = folder / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < (HERE / "package-lock.json").stat().st_mtime:
        npm = shutil.which("npm")
        if npm is None:
            need("npm is not installed")
        command = [str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        result = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300)
        if result.returncode:
            need(f"npm ci failed: {result.stderr[-500:]}")
    return folder
