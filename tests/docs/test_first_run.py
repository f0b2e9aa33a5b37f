"""README and quick start, line by line, in a clone that has done ``make demo`` and no more."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"),
    reason="a network namespace needs root, unshare and ip",
)
def test_readme_and_quick_start_hold_in_a_clean_environment(tmp_path: Path) -> None:
    page = tmp_path / "first-run.md"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "docs/first_run.py", "--port", str(port), "--out", str(page)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["TMPDIR"] = str(tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = page.read_text(encoding="utf-8")
    assert "that claim to run then ran" in told
    assert told.count("There is one shape") + told.count("There are") >= 2, told
