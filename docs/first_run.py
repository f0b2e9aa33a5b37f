"""Walk from a fresh clone to an answer as a new user does, and write down the steps and times.

    python docs/first_run.py [--port 8000] [--out docs/measurements/first-run.md]

What is timed is what the README says, nothing else: clone, `make demo`, an image, an answer. What
pip has in its cache is used, as it would be for a user; the result says how much of that there was.
"""

from __future__ import annotations

import argparse
import datetime
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
QUESTION = "What do you see?"


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


def run(folder: Path, *command: str) -> str:
    """A command that must succeed; what it says."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout


def main() -> None:
    """Walk, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "measurements" / "first-run.md")
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    walk = Walk()
    with tempfile.TemporaryDirectory(prefix="first-run-") as temporary:
        clone = Path(temporary) / "vora-serve"
        run(Path(temporary), "git", "clone", "--quiet", str(ROOT), str(clone))
        walk.done("`git clone`")
        process = serve(walk, clone, arguments.port)
        try:
            shown = run(clone, ".venv/bin/vora-serve", "demo", "image", "scene.png")
            walk.done("`vora-serve demo image scene.png`", shown)
            url = f"http://127.0.0.1:{arguments.port}"
            options = ["--base-url", url, "--image", "scene.png"]
            said = run(clone, ".venv/bin/vora-serve", "chat", *options, QUESTION)
            walk.done(f'`vora-serve chat --image scene.png "{QUESTION}"`', said)
        finally:
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(120)
        walk.done("Ctrl-C", "ended by SIGINT" if code == -signal.SIGINT else f"exit code {code}")
    commit = run(ROOT, "git", "describe", "--always", "--dirty").strip()
    lines = [
        "# From a clone to an answer, timed",
        "",
        f"`python docs/first_run.py`, {datetime.date.today()}, commit {commit}; Python "
        f"{platform.python_version()}, {os.cpu_count()} cores; load average {before:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after. pip used its cache and its index.",
        "",
        "| Step | Seconds | It said |",
        "| --- | ---: | --- |",
        *(f"| {what} | {seconds:.1f} | {said} |" for what, seconds, said in walk.steps),
        f"| Together | {sum(seconds for _, seconds, _ in walk.steps):.1f} | |",
    ]
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
