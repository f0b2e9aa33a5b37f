"""The installer that every make target begins with."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

INSTALL = Path(__file__).parent.parent / "docker" / "requirements" / "install.sh"


def test_a_second_installation_waits_for_the_first(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()  # not a virtual environment: the installer goes no further than to say so
    with open(f"{venv}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            ["bash", INSTALL, "engine"],
            env={**os.environ, "VENV": str(venv), "DEVICE": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stdout is not None
        assert "waiting for it" in waiting.stdout.readline()
        assert waiting.poll() is None
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 2
    assert f"{venv} exists, but is not a virtual environment" in errors
