"""Walk from a fresh clone to an answer as a new user does, and write down the steps and times.

    python docs/first_run.py [--port 8000] [--out docs/measurements/first-run.md]

Timed is what the README says, nothing else: clone, ``make demo``, an image, an answer. Then every
code block of README and quick start is run in the clone, in order, where it does not say why it
cannot. Last, the demo is started again in a network namespace of its own, without a network (needs
root and Linux). What pip has in its cache is used, as it would be for a user. ``TMPDIR`` says where
the clone is made, which takes about 4 GB.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.docs.blocks import Block, blocks  # noqa: E402

QUESTION = "What do you see?"
PAGES = ("README.md", "docs/quickstart.md")


class Walk:
    """Steps with the seconds that each took."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float, str]] = []
        self._since = time.monotonic()

    def done(self, what: str, said: str = "") -> None:
        """A step has ended just now."""
        now = time.monotonic()
        self.steps.append((what, now - self._since, said.strip()))
        self._since = now
        sys.stderr.write(f"{self.steps[-1][1]:7.1f} s  {what}\n")


def ready(url: str) -> bool:
    """Whether the server can answer questions."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def serve(walk: Walk, folder: Path, port: int) -> subprocess.Popen[str]:
    """`make demo`, until it is ready; its set-up and its start are steps of their own."""
    process = subprocess.Popen(
        ["make", f"PORT={port}", "demo"], cwd=folder, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    starting = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(f"    {line}")
            if "starting the engine" in line:
                starting.set()

    threading.Thread(target=read, daemon=True).start()
    while not starting.wait(0.2):
        if process.poll() is not None:
            raise SystemExit(f"make demo ended with code {process.returncode}")
    walk.done("`make demo`: setting up")
    while not ready(f"http://127.0.0.1:{port}"):
        if process.poll() is not None:
            raise SystemExit(f"make demo ended with code {process.returncode}")
        time.sleep(0.2)
    walk.done("`make demo`: starting the engine, until it is ready")
    return process


def run(folder: Path, *command: str, url: str = "http://127.0.0.1:8000") -> str:
    """A command that must succeed; what it says. The server is at ``url``."""
    env = {**os.environ, "VORA_BASE_URL": url}
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stdout}\n{result.stderr}")
    return result.stdout


def answer(walk: Walk, folder: Path, port: int) -> None:
    """Draw an image, and ask about it."""
    shown = run(folder, ".venv/bin/vora-serve", "demo", "image", "scene.png")
    walk.done("`vora-serve demo image scene.png`", shown)
    url = f"http://127.0.0.1:{port}"
    options = ["--base-url", url, "--image", "scene.png"]
    said = run(folder, ".venv/bin/vora-serve", "chat", *options, QUESTION)
    walk.done(f'`vora-serve chat --image scene.png "{QUESTION}"`', said)


def follow(folder: Path, port: int) -> int:
    """Run every block of README and quick start in the clone; how many there were.

    Raises:
        SystemExit: a block fails, or prints nothing.
    """
    found = [block for page in PAGES for block in blocks(ROOT / page) if block.why_not is None]
    for block in found:
        sys.stderr.write(f"{block.name}\n")
        url = f"http://127.0.0.1:{port}"
        said = run(folder, *program(block, folder, port), url=url)
        if not said.strip() or '"error"' in said:
            raise SystemExit(f"{block.name} says: {said}")
    return len(found)


def program(block: Block, folder: Path, port: int) -> list[str]:
    """The command that runs a block, as the page says; its address has this port."""
    command = {"sh": ["bash", "-euo", "pipefail"], "python": [".venv/bin/python"]}[block.language]
    file = folder / f"block.{block.language}"
    file.write_text(block.code.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), encoding="utf-8")
    return [*command, file.name]


def stop(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C; how it ended."""
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(120)
    return "ended by SIGINT" if code == -signal.SIGINT else f"exit code {code}"


def offline(folder: Path, port: int) -> list[tuple[str, float, str]]:
    """The second start and answer, in a network namespace that has a loopback and nothing else."""
    command = [sys.executable, __file__, "--second-start", str(folder), "--port", str(port)]
    inside = [
        "unshare",
        "--net",
        "--",
        "sh",
        "-c",
        'ip link set lo up && exec "$@"',
        "sh",
        *command,
    ]
    told = subprocess.run(inside, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [tuple(step) for step in json.loads(told)]


def second_start(folder: Path, port: int) -> None:
    """What :func:`offline` runs in its namespace; steps as JSON on standard output."""
    try:
        urllib.request.urlopen("http://192.0.2.1", timeout=2)
    except OSError:
        pass
    else:
        raise SystemExit("There is a network.")
    walk = Walk()
    process = serve(walk, folder, port)
    try:
        answer(walk, folder, port)
    finally:
        ended = stop(process)
    walk.done("Ctrl-C", ended)
    sys.stdout.write(json.dumps(walk.steps))


def table(steps: list[tuple[str, float, str]]) -> list[str]:
    """The steps, and the time that they took together."""
    return [
        "| Step | Seconds | It said |",
        "| --- | ---: | --- |",
        *(f"| {what} | {seconds:.1f} | {said} |" for what, seconds, said in steps),
        f"| Together | {sum(seconds for _, seconds, _ in steps):.1f} | |",
    ]


def main() -> None:
    """Walk, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements" / "first-run.md")
    parser.add_argument("--second-start", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.second_start is not None:
        second_start(arguments.second_start, arguments.port)
        return
    before = os.getloadavg()[0]
    walk = Walk()
    with tempfile.TemporaryDirectory(prefix="first-run-") as temporary:
        clone = Path(temporary) / "vora-serve"
        run(Path(temporary), "git", "clone", "--quiet", str(ROOT), str(clone))
        walk.done("`git clone`")
        process = serve(walk, clone, arguments.port)
        try:
            answer(walk, clone, arguments.port)
            steps = list(walk.steps)
            followed = follow(clone, arguments.port)
        finally:
            ended = stop(process)
        again = offline(clone, arguments.port)
    commit = run(ROOT, "git", "describe", "--always", "--dirty").strip()
    lines = [
        "# From a clone to an answer, timed",
        "",
        f"`python docs/first_run.py`, {datetime.date.today()}, commit {commit}; Python "
        f"{platform.python_version()}, {os.cpu_count()} cores; load average {before:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after. pip used its cache and its index.",
        "",
        *table(steps),
        "",
        f"All {followed} code blocks of README and quick start that claim to run then ran in this "
        f"clone, which has done `make demo` and no more, without an error. Ctrl-C: {ended}.",
        "",
        "## A second start without a network",
        "",
        "The same clone, in a network namespace that has a loopback interface and nothing else:",
        "",
        *table(again),
    ]
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
