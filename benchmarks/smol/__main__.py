"""VoRA on SmolLM2 in minutes of a GPU, its rehearsal on CPU, and what came of either.

    python -m benchmarks.smol train [--size gpu|rehearsal] [--minutes N] [--steps N]
                                     [--out DIR] [--work DIR]
    python -m benchmarks.smol evaluate [--out DIR] [--work DIR] [--limit N]
    python -m benchmarks.smol report [--out DIR] [--page FILE]
    python -m benchmarks.smol merge [--out DIR] [--work DIR]

``train`` makes everything: base LLM, text in the LLM's own words, vision teacher, pretraining. It
ends when the time is up, whatever the machine's speed: a probe decides the number of steps,
unless ``--steps`` allows fewer.
``--out`` gets the adapter in pieces (anew every quarter of the steps), losses and throughput.
``evaluate`` merges the adapter, serves it with vLLM, and asks it; it needs no GPU. ``merge`` makes
the base and the merged model in ``--work`` from the adapter in ``--out``, for ``make demo``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import transformers

from benchmarks.smol.sizes import SIZES
from vora_core.errors import VoRAError
from vora_serve.world.wide.assets import EMOJI_FOLDER


def main() -> None:
    """Command line."""
    arguments = _arguments()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        _run(arguments)
    except VoRAError as error:
        sys.exit(f"smol: {error}")


def _run(arguments: argparse.Namespace) -> None:
    size = SIZES[arguments.size]
    if arguments.what == "train":
        from benchmarks.smol.run import Run

        until = time.monotonic() + 60 * arguments.minutes
        work, out, emoji = arguments.work, arguments.out, arguments.emoji
        Run(size, work, out, emoji, until, arguments.steps).do()
    elif arguments.what == "evaluate":
        from benchmarks.smol.evaluate import evaluate

        evaluate(arguments.work, arguments.out, arguments.emoji, arguments.limit)
    elif arguments.what == "merge":
        from benchmarks.smol.merge import merge

        for line in merge(arguments.out, arguments.work):
            sys.stdout.write(line + "\n")
    if arguments.what in ("train", "report"):
        from benchmarks.smol.report import write_report

        sys.stdout.write(write_report(arguments.out, arguments.size, arguments.page))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=("train", "evaluate", "report", "merge"))
    parser.add_argument("--size", choices=tuple(SIZES), default="gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="Of train, all in all.")
    parser.add_argument("--steps", type=_steps, help="Of train, at most.")
    parser.add_argument("--out", type=Path, default=Path("runs/smol/out"))
    parser.add_argument("--work", type=Path, default=Path("runs/smol/work"))
    parser.add_argument("--emoji", type=Path, default=EMOJI_FOLDER)
    parser.add_argument("--limit", type=int, default=120, help="Questions of each family.")
    parser.add_argument("--page", type=Path, help="Markdown file to write the report to.")
    return parser.parse_args()


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number of at least 1 is needed")
    return int(text)


if __name__ == "__main__":
    main()
