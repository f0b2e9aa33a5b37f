"""Faults injected at random into trainings that two processes share; the outcomes are checked.

python -m tests.vora_serve.training.drills --drills 10 --seed 0

``DRILL_SHARDING`` may name ``fsdp2`` or ``zero1``.

Whatever happens, a run ends whole, or stops with a message that names the last good state (a
process that is killed says nothing, but the other one does); and the same command then resumes it
to the result of an undisturbed run.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.vora_serve.training import bases

FAULTS = ("nan", "burst", "sigterm", "sigkill", "full disk", "vanished file", "corrupted state")
#: How the processes share a run; the environment's, since workers inherit it.
SHARDING = os.environ.get("DRILL_SHARDING", "none")
STEPS, SAVE_EVERY, MICRO_BATCHES = 12, 3, 2


def inject(fault: str, step: int, rank: int) -> None:
    """Have this process of a run meet a fault at a step, counted from 0."""
    from vora_serve.training import parallel, zero
    from vora_serve.training.data import Batch

    ways = {"none": parallel.Replicated, "fsdp2": parallel.FullyShard, "zero1": zero.ZeRO}
    way: Any = ways[os.environ["DRILL_SHARDING"]]
    forward, count = way.forward, [0]
    mine = int(os.environ["RANK"]) == rank

    def faulty(self: Any, batch: Batch, *, last: bool) -> dict[str, torch.Tensor]:
        now = count[0] // MICRO_BATCHES
        first = count[0] == step * MICRO_BATCHES
        count[0] += 1
        if fault == "full disk" and first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        if mine and first and fault in ("sigterm", "sigkill", "corrupted state"):
            os.kill(os.getpid(), signal.SIGTERM if fault == "sigterm" else signal.SIGKILL)
        if mine and first and fault == "vanished file":
            Path(os.environ["DRILL_DATA"]).unlink(missing_ok=True)
        losses = forward(self, batch, last=last)
        if mine and ((fault == "nan" and first) or (fault == "burst" and now >= step)):
            losses["lm"] = losses["lm"] * float("nan")
        return losses

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    way.forward = faulty


def run(
    recipe: Path, data: Path, place: Path, fault: tuple[str, int, int] | None
) -> tuple[int, str]:
    """Train in two processes; returns the launcher's exit code and what was said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", __spec__.name, "--worker"]
    command += [f"--fault={json.dumps(fault)}", str(recipe)]
    command += [f"run={place / 'run'}", f"out={place / 'out'}"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DRILL_DATA": str(data),
        "DRILL_SHARDING": SHARDING,
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=550, check=False, env=environment
    )
    return done.returncode, done.stderr


def same(one: Path, two: Path) -> bool:
    """Whether two checkpoints hold the same weights."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def drill(fault: str, step: int, rank: int, base: Path, work: Path) -> str:
    """Do one drill; returns what came out.

    Raises:
        AssertionError: the outcome is not one of those that are allowed.
    """
    recipe, data = base / "recipe.yaml", base / "data" / "data.jsonl"
    contents = data.read_bytes()
    code, said = run(recipe, data, work, (fault, step, rank))
    data.write_bytes(contents)
    state, out = work / "run" / "state" / "state.pt", work / "out"
    if code == 0:
        metrics = (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        skipped = json.loads(metrics[-1]).get("skipped_steps", 0)
        assert skipped == (1 if fault == "nan" else 0), said[-2000:]
        assert fault == "nan" or same(out, base / "whole" / "out")
        assert all(bool(t.isfinite().all()) for t in load_file(out / "model.safetensors").values())
        return f"an unbroken run, {skipped} steps skipped"
    assert not out.exists(), "a run that stopped leaves no result"
    # Where one process is killed, the launcher may end the other before it can say anything.
    named = "The last good state is of step" in said or "No training state was saved" in said
    assert named or fault in ("sigkill", "corrupted state"), said[-3000:]
    if fault == "corrupted state" and state.exists():
        damaged = bytearray(state.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        state.write_bytes(damaged)
    code, said = run(recipe, data, work, None)
    if code and fault == "corrupted state":
        assert "No good training state is left" in said, said[-2000:]
        return "a stop, the only state damaged: refused"
    assert code == 0, said[-3000:]
    assert same(out, base / "whole" / "out"), "a resumed run has the result of an undisturbed one"
    return f"a stop{' that names the last good state' if named else ''}, then resumed to the result"


def drills(count: int, seed: int, say: Callable[[str], object]) -> None:
    """Do so many drills, every kind of fault in turn, at random steps of random processes."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        bases.pretrain_recipe(base)
        code, said = run(base / "recipe.yaml", base / "data" / "data.jsonl", base / "whole", None)
        assert code == 0, said[-3000:]
        order = [*FAULTS]
        chance.shuffle(order)
        for number in range(count):
            fault = order[number % len(order)]
            step, rank = chance.randrange(1, STEPS - 3), chance.randrange(2)
            outcome = drill(fault, step, rank, base, base / f"drill-{number}")
            say(f"{number + 1}. {fault} at step {step + 1} on process {rank}: {outcome}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--drills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fault", default="null", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.worker:
        drills(args.drills, args.seed, lambda line: sys.stdout.write(line + "\n"))
        return
    from vora_serve import cli

    torch.set_num_threads(1)
    fault = json.loads(args.fault)
    if fault is not None:
        inject(*fault)
    settings = [f"optimisation.steps={STEPS}", f"optimisation.save_every={SAVE_EVERY}"]
    settings += ["optimisation.batch_size=8", "data.max_skipped=0"]
    settings += [f"optimisation.sharding={SHARDING}"]
    sys.argv = ["vora-serve", "pretrain", "--config", args.rest[0], *settings, *args.rest[1:]]
    cli.main()


if __name__ == "__main__":
    main()
