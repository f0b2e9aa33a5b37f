"""Where the clients are installed: environments of their own, built once for each set of pins."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.clients.roster import HERE, Client

BUILD = HERE.parents[1] / "build" / "clients"


def _run(*command: str | Path, cwd: Path | None = None, within: float = 900) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=within)
    if result.returncode:
        pytest.fail(f"{command[0]} failed: {(result.stderr or result.stdout)[-600:]}")
    return result.stdout


@cache
def python_of(environment: str) -> Path:
    """The interpreter of an environment, which is made where it is not there yet.

    ``VORA_CLIENTS_REFRESH`` makes it anew: the newest clients change without any file here.
    """
    folder = BUILD / environment
    requirements = HERE / "python" / "requirements" / f"{environment}.txt"
    stamp = folder / "stamp"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if os.environ.get("VORA_CLIENTS_REFRESH") or not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", folder)
        _run(python, "-m", "pip", "install", "--quiet", "--requirement", requirements)
        stamp.write_text(wanted)
    return python


@cache
def node() -> str:
    """The node program, with the clients as the lock file has them; skips without node."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = HERE / "npm"
    lock, done = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        _run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
    return program


def command(client: Client) -> list[str]:
    """How a client's tour is started, before the arguments that all have."""
    program = str(HERE / client.language / client.program)
    if client.language == "python":
        return [str(python_of(client.environment)), program]
    if client.language == "npm":
        return [node(), program]
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("no JDK is installed")
    return [java, program]


def version(client: Client) -> str:
    """The versions of a client's packages."""
    packages = client.packages or (client.name,)
    if client.language == "java":
        return _run("java", "--version").split("\n")[0]
    if client.language == "npm":
        folder = HERE / "npm" / "node_modules"
        found = [json.loads((folder / p / "package.json").read_text())["version"] for p in packages]
    else:
        ask = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
        python = python_of(client.environment)
        found = [_run(python, "-c", ask, package).strip() for package in packages]
    return ", ".join(
        number if len(packages) == 1 else f"{package} {number}"
        for package, number in zip(packages, found, strict=True)
    )
