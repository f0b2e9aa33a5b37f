"""The sections of the run: what each measures, and how long it may take."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.engines import Engine, build, chosen, specification
from benchmarks.gpu.programs import OutOfTimeError, Program
from benchmarks.gpu.records import Record
from benchmarks.gpu.workloads import FULL, TINY

#: Paired turns of the engines; fewer where time runs out.
TURNS = {False: 7, True: 1}
#: Seconds of the engines' section that are kept for measuring.
MEASURING_S = 75


@dataclass
class Run:
    """What the sections share.

    Args:
        out: folder of results.
        rehearse: on a CPU, with tiny shapes.
        free_gib: free memory of the GPU.
        workers: engines that are up, by name; the first is what others are compared with.
    """

    out: Path
    rehearse: bool
    free_gib: float = 0.0
    workers: dict[str, Program] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        """Where a program's other output goes."""
        folder = self.out / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"

    def stop_engines(self) -> None:
        """End the engines' processes."""
        for program in self.workers.values():
            program.stop()
        self.workers.clear()


#: Fills a record by a deadline of ``time.monotonic``.
Measure = Callable[[Run, Record, float], None]


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Args:
        name: of its file.
        title: in the report.
        limit_s: seconds that it may take on a GPU; the report takes what is left.
        measure: what it does.
    """

    name: str
    title: str
    limit_s: int
    measure: Measure


def by_program(module: str) -> Measure:
    """A section that is one program's answers."""

    def measure(run: Run, record: Record, deadline: float) -> None:
        arguments = ["--rehearse"] if run.rehearse else []
        program = Program(f"benchmarks.gpu.{module}", *arguments, log=run.log(record.path.stem))
        try:
            for row in program.answers(deadline):
                record.add(row)
        finally:
            program.stop()

    return measure


def engines(run: Run, record: Record, deadline: float) -> None:
    """Engines beside each other on the GPU, measured in turns; they stay for the next section."""
    _start(run, record, deadline)
    names = list(run.workers)
    cases = (TINY if run.rehearse else FULL).cases()
    for turn in range(TURNS[run.rehearse]):
        for kind, count in cases:
            # Whoever comes first finds a cooler GPU: they swap places.
            for name in names[:: -1 if turn % 2 else 1]:
                last = (kind, count) == cases[-1]
                question = {"kind": kind, "count": count, "turn": turn, "last": last}
                _ask(run, record, name, question, deadline)
        names = [name for name in names if name in run.workers]


def _start(run: Run, record: Record, deadline: float) -> None:
    models = run.out / "models"
    models.mkdir(exist_ok=True)
    starting: dict[str, Program] = {}
    for engine in chosen(run.rehearse, run.free_gib):
        told = specification(engine, build(engine, models, run.rehearse), run.rehearse)
        starting[engine.name] = Program(
            "benchmarks.gpu.worker",
            json.dumps(told),
            log=run.log(_file_name(engine)),
            # Engines that compile at once must not write to one cache.
            environment={"VLLM_CACHE_ROOT": str(run.out / "cache" / _file_name(engine))}
            | dict(engine.environment),
        )
    run.workers |= starting
    # Whoever is not up by then is left out.
    last = deadline if run.rehearse else deadline - MEASURING_S
    for name, program in starting.items():
        try:
            row = program.answer(last) or {"kind": "start", "error": "it ended"}
        except OutOfTimeError:
            row = {"kind": "start", "error": "it was not up in time"}
        record.add({"engine": name, **row})
        if "error" in row:
            run.workers.pop(name).stop()
    if not run.workers:
        raise RuntimeError("no engine came up")


def _file_name(engine: Engine) -> str:
    return "engine-" + "".join(c if c.isalnum() else "-" for c in engine.name.lower())


def _ask(run: Run, record: Record, name: str, question: dict[str, object], deadline: float) -> None:
    program = run.workers.get(name)
    if program is None:
        return
    try:
        record.add({"engine": name, **program.ask(question, deadline)})
        if question.get("last"):
            record.add({"engine": name, **(program.answer(deadline) or {})})
    except OutOfTimeError:
        # Its answer would come in the next section.
        run.workers.pop(name).stop()
        raise
    except RuntimeError as error:
        record.add({"engine": name, **question, "error": str(error)})
        run.workers.pop(name).stop()


def saturation(run: Run, record: Record, deadline: float) -> None:
    """Images per second with ready pixels, of the engine and of the host."""
    if not run.workers:
        raise RuntimeError("no engine is up")
    count = (TINY if run.rehearse else FULL).flood
    for turn in range(TURNS[run.rehearse]):
        for name in list(run.workers)[:: -1 if turn % 2 else 1]:
            _ask(run, record, name, {"kind": "flood", "count": count, "turn": turn}, deadline)


def training(size: str) -> Measure:
    """Training throughput at one size: FlexAttention and packing against dense masks."""

    def measure(run: Run, record: Record, deadline: float) -> None:
        found = run.out / f"{record.path.stem}-throughput.json"
        how = ("cpu", "tiny", "2") if run.rehearse else ("cuda", size, "4")
        command = [
            *(sys.executable, "-m", "benchmarks.training.throughput", "--json", str(found)),
            *("--device", how[0], "--size", how[1], "--steps", how[2]),
        ]
        with run.log(record.path.stem).open("wb") as log:
            try:
                done = subprocess.run(
                    command,
                    stdout=log,
                    stderr=log,
                    check=False,
                    timeout=max(1.0, deadline - time.monotonic()),
                )
            except subprocess.TimeoutExpired:
                raise OutOfTimeError from None
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}, see logs/{record.path.stem}.log")
        record.add(json.loads(found.read_text(encoding="utf-8")))
        found.unlink()

    return measure


#: Most important first. Their limits add up to less than nine minutes, the report included.
SECTIONS = (
    Section("floors", "What the device can do", 25, by_program("floors")),
    Section("kernels", "Attention kernels", 65, by_program("kernels")),
    Section("end-to-end", "vLLM against the Hugging Face model", 70, by_program("end_to_end")),
    Section("engines", "Engines", 220, engines),
    Section("saturation", "Saturation", 25, saturation),
    Section("training-0.5b", "Training, 0.5B", 50, training("0.5b")),
    Section("training-1.5b", "Training, 1.5B", 65, training("1.5b")),
)
#: Seconds for the report.
REPORT_S = 15
