"""``python -m loadtest``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from vora_core.errors import ConfigError, VoRAError

PRESETS = Path(__file__).parent / "presets"
#: Variable that says what usage lines call this program; ``vora-serve loadtest`` sets it.
PROGRAM = "LOADTEST_PROGRAM"


def out(text: str) -> None:
    """A line of result, on standard output."""
    sys.stdout.write(text + "\n")


def _build(args: argparse.Namespace) -> int:
    from loadtest import checkpoints
    from loadtest.shapes import shape

    keys: dict[str, Any] = {"seed": args.seed, "overwrite": args.overwrite}
    if args.command == "vora":
        built = checkpoints.build_vora(
            args.out, shape(args.shape), merge=args.merge, resolution=args.resolution, **keys
        )
    elif args.recipe == "qwen2_5_vl":
        built = checkpoints.build_qwen2_5_vl(args.out, shape(args.shape), **keys)
    else:
        built = checkpoints.build_llava(args.out, shape(args.shape), **keys)
    out(f"{args.out}: {built / 1e6:.1f}M random weights")
    return 0


def _run(args: argparse.Namespace) -> int:
    from vora_core.installation import require

    require("loadtest", "The load test")  # now, not after everything is measured
    from loadtest.drive.runner import Runner
    from loadtest.drive.store import RunFolder
    from loadtest.settings import load_settings

    variables = {}
    for item in args.set:
        name, sign, value = item.partition("=")
        if not sign:
            raise ConfigError(f"--set takes NAME=VALUE, not {item!r}.")
        variables[name] = value
    file = args.file
    if not file.exists() and (PRESETS / f"{file}.yaml").exists():
        file = PRESETS / f"{file}.yaml"
    settings = load_settings(file, variables)
    folder = RunFolder(args.out)
    failure: VoRAError | None = None
    try:
        Runner(settings, folder, args.generator_python).run()
    except KeyboardInterrupt:
        failure = VoRAError("Interrupted; the same command goes on from here.")
    except VoRAError as error:
        if isinstance(error, ConfigError):
            raise
        failure = error
    code = _write_report(folder, args.notes)
    if failure is not None:
        raise failure
    return code


def _report(args: argparse.Namespace) -> int:
    from loadtest.drive.store import RunFolder

    return _write_report(RunFolder(args.folder), args.notes)


def _write_report(folder: Any, notes: Path | None) -> int:
    from vora_core.installation import require

    require("loadtest", "The report")
    from loadtest.analysis.summary import summarise
    from loadtest.report import write_report

    text = None
    if notes is not None:
        try:
            text = notes.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"The notes {notes} cannot be read: {error.strerror}.") from None
    found = summarise(folder)
    write_report(folder.path, found, text)
    out(f"report: {folder.path / 'report.html'}, {folder.path / 'report.md'}")
    for reason in found["broken"]:
        out(f"not met: {reason}")
    return 1 if found["broken"] else 0


def _compare(args: argparse.Namespace) -> int:
    from loadtest.analysis.regressions import compare_runs, load_results

    lines, worse = compare_runs(load_results(args.old), load_results(args.new), args.threshold)
    for line in lines:
        out(line)
    return 1 if worse else 0


def _plan(args: argparse.Namespace) -> int:
    from loadtest.plan.report import plan_lines

    for line in plan_lines(args.results, args.server, args.mix, args.check, args.weight_bytes):
        out(line)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    name = os.environ.get(PROGRAM, "python -m loadtest")
    top = argparse.ArgumentParser(prog=name, description="Load tests over HTTP.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, summary in (
        ("vora", "VoRA checkpoints with random weights"),
        ("baseline", "encoder-based checkpoints with random weights, for stock vLLM"),
    ):
        group = commands.add_parser(name, help=summary).add_subparsers(
            dest="action", required=True, metavar="ACTION"
        )
        build = group.add_parser("build", help="write one")
        build.add_argument("out", type=Path, help="folder to make")
        build.add_argument("--shape", default="tiny", help="tiny, 0.5b, 1.5b, 3b or 7b [tiny]")
        build.add_argument("--seed", type=int, default=0)
        build.add_argument("--overwrite", action="store_true", help="replace the folder")
        if name == "vora":
            build.add_argument("--merge", type=int, default=1, help="m: m x m patches a token [1]")
            build.add_argument("--resolution", choices=["fixed", "native"], default="fixed")
        else:
            build.add_argument("--recipe", choices=["llava", "qwen2_5_vl"], default="llava")
        build.set_defaults(handler=_build)

    run = commands.add_parser("run", help="measure what a run file says, and report")
    run.add_argument("file", type=Path, help="run file, or the name of a preset")
    run.add_argument("--out", type=Path, required=True, help="the run's folder; resumed if there")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--notes", type=Path, help="Markdown to put into the report")
    run.add_argument("--generator-python", help="interpreter with vLLM [this one]")
    run.set_defaults(handler=_run)

    report = commands.add_parser("report", help="write a run's report anew")
    report.add_argument("folder", type=Path, help="the run's folder")
    report.add_argument("--notes", type=Path, help="Markdown to put into the report")
    report.set_defaults(handler=_report)

    compare = commands.add_parser("compare", help="what got worse between two runs; exit status 1")
    compare.add_argument("old", type=Path, help="a run's folder, or its results.json")
    compare.add_argument("new", type=Path)
    compare.add_argument(
        "--threshold", type=float, default=0.1, help="change that counts as one [0.1]"
    )
    compare.set_defaults(handler=_compare)

    plan = commands.add_parser("plan", help="what a fleet needs for a traffic mix, on paper")
    plan.add_argument("results", type=Path, help="a run's folder, or its results.json")
    plan.add_argument("--server", required=True, help="whose measured costs to start from")
    plan.add_argument("--mix", type=Path, help="YAML: traffic, service level, hardware")
    plan.add_argument(
        "--check", action="store_true", help="simulate the run's own points, beside what they gave"
    )
    plan.add_argument(
        "--weight-bytes", type=int, choices=[1, 2, 4], default=2, help="as served [2]"
    )
    plan.set_defaults(handler=_plan)
    return top


def stop_cleanly() -> None:
    """Let SIGINT and SIGTERM stop servers, also in the background, where shells ignore SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    args = parser().parse_args(arguments)
    try:
        code: int = args.handler(args)
    except VoRAError as error:
        sys.stderr.write(f"loadtest: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("loadtest: interrupted\n")
        return 1
    return code
