"""Two processes train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]


def run(processes: int, folder: Path) -> list[dict[str, Any]]:
    """Metrics of a short pretraining, a line a step."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes)]
    command += ["-m", "tests.vora_serve.training.parallel_run", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    one, two = run(1, tmp_path / "one"), run(2, tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6], "one process should report"
    for key in ("lm", "aux_0", "aux_1", "grad_norm"):
        assert [a[key] for a in one] == pytest.approx([b[key] for b in two], abs=1e-4), key
    weights = [load_file(tmp_path / n / "pretrained" / "model.safetensors") for n in ("one", "two")]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-3, name
