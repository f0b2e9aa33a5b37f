"""vLLM's Triton fallback compiles for Hopper and Blackwell, with this plugin's arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("capability", [90, 100])
def test_attention_compiles(capability: int) -> None:
    # In a process of its own: elsewhere Triton interprets.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda_stand_in.compile_triton", str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = json.loads(done.stdout.splitlines()[-1])["compiled"]
    assert len(compiled) >= 2
    assert all(kernel["bytes"] > 10_000 for kernel in compiled)
