"""Measures VoRA on one GPU, in under nine minutes: ``python -m benchmarks.gpu``.

Sections run in order of importance, each with its own time limit and a JSON file that is complete
after every row. ``report.md`` with its plots is written at the end, and again by ``--report`` from
the files of an earlier run: plots need matplotlib, which the machine with the GPU may lack.
``--rehearse`` runs all of it on a CPU with tiny shapes, to see that it works; its numbers say
nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.programs import OutOfTimeError, one_line
from benchmarks.gpu.records import Record
from benchmarks.gpu.report import write_report
from benchmarks.gpu.sections import SECTIONS, Run, Section
from loadtest.drive.machine import describe_machine, describe_versions

#: Rehearsals share two cores with whatever else runs there.
REHEARSAL_LIMIT_S = 280


def free_gpu_gib() -> float | None:
    """Free memory of the first GPU; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    text = done.stdout.strip()
    return float(text) / 1024 if done.returncode == 0 and text.isdigit() else None


def measure(run: Run, section: Section) -> str:
    """Run a section and keep what it measured; returns how it ended."""
    limit = REHEARSAL_LIMIT_S if run.rehearse else section.limit_s
    record = Record(run.out, section.name, limit)
    try:
        section.measure(run, record, time.monotonic() + limit)
        state = "complete"
    except OutOfTimeError:
        state = f"cut off after {limit} s"
    except Exception as error:  # noqa: BLE001 - the other sections are still to be run
        state = f"failed: {one_line(error)}"
    record.end(state)
    return state


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 all sections are complete, 1 some are not, 2 there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="[runs/gpu]")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny shapes")
    parser.add_argument("--report", action="store_true", help="write the report of a run again")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[section.name for section in SECTIONS],
        metavar="SECTION",
        help=f"of {', '.join(section.name for section in SECTIONS)}; saturation needs engines",
    )
    options = parser.parse_args(arguments)
    if options.report:
        sys.stdout.write(f"{write_report(options.out)}\n")
        return 0
    free = None if options.rehearse else free_gpu_gib()
    if free is None and not options.rehearse:
        sys.stderr.write(
            "benchmarks.gpu: this machine has no NVIDIA GPU; --rehearse runs it on the CPU.\n"
        )
        return 2
    run = Run(options.out.resolve(), options.rehearse, free or 0.0)
    run.out.mkdir(parents=True, exist_ok=True)
    about = {
        "machine": describe_machine(),
        "versions": describe_versions(),
        "date": time.strftime("%Y-%m-%d"),
        "rehearsal": run.rehearse,
    }
    (run.out / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    states = []
    try:
        for section in SECTIONS:
            if options.only and section.name not in options.only:
                continue
            if section.name.startswith("training"):
                run.stop_engines()  # the GPU is theirs alone
            states.append(measure(run, section))
            sys.stdout.write(f"{section.name}: {states[-1]}\n")
            sys.stdout.flush()
    finally:
        run.stop_engines()
        for folder in ("models", "cache"):
            shutil.rmtree(run.out / folder, ignore_errors=True)
        sys.stdout.write(f"{write_report(run.out)}\n")
    return int(any(state != "complete" for state in states))


if __name__ == "__main__":
    sys.exit(main())
