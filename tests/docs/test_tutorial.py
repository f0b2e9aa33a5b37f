"""The tutorial's commands, as they are typed, and what the page says that they print.

Minutes: two fine-tunes and three engines. ``VORA_TUTORIAL_PAGE=1`` writes what came out onto the
page, and its two images.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.docs.blocks import FENCE, ROOT

PAGE = ROOT / "docs" / "tutorial.md"
FIGURES = ROOT / "docs" / "images" / "tutorial"
WRITE = bool(os.environ.get("VORA_TUTORIAL_PAGE"))
#: Accuracies of other processors differ by roundings that training amplifies.
POINTS = 25.0
#: Parts of each photo that the page shows.
SHOWN = ("000-064", "064-128", "128-320", "192-064", "256-256", "448-448")
_PERCENT = re.compile(r"\d+(?:\.\d+)?%")
_PORT = re.compile(r"\b(8000|8001|8002|8010)\b")


@dataclass(frozen=True)
class Step:
    """A block of the page.

    Attributes:
        kind: ``sh``, ``python``, ``serves`` or ``text``.
        code: what stands in it.
        start, end: of the code, in characters of the page.
        varies: a text that depends on roundings.
    """

    kind: str
    code: str
    start: int
    end: int
    varies: bool


def steps(text: str) -> list[Step]:
    """The page's blocks in order, without those that say why they do not run."""
    found = []
    for match in FENCE.finditer(text):
        comment = (match["comment"] or "").strip()
        if comment.startswith("not run:"):
            continue
        kind = "serves" if comment == "serves" else match["language"]
        varies = comment == "varies"
        found.append(Step(kind, match["code"], match.start("code"), match.end("code"), varies))
    return found


def differences(said: str, page: str) -> list[str]:
    """What differs beyond roundings."""
    ours, theirs = said.splitlines(), page.splitlines()
    if [_PERCENT.sub("%", line) for line in ours] != [_PERCENT.sub("%", line) for line in theirs]:
        return [f"{said}\n--- on the page:\n{page}"]
    return [
        f"{mine} on the page: {shown} in {line}"
        for line, other in zip(ours, theirs, strict=True)
        for mine, shown in zip(_PERCENT.findall(line), _PERCENT.findall(other), strict=True)
        if abs(float(mine[:-1]) - float(shown[:-1])) > POINTS
    ]


def test_the_comparison_takes_roundings_and_nothing_else() -> None:
    assert differences("a 90.0%\n", "a 75.5%\n") == []
    assert differences("a 90.0%\n", "a 60.5%\n")
    assert differences("moon\n", "brick\n")
    assert differences("a 90.0%\n", "b 90.0%\n")
    assert differences("a\nb\n", "a\n")


def test_the_page_has_steps_and_what_they_print() -> None:
    kinds = [step.kind for step in steps(PAGE.read_text(encoding="utf-8"))]
    assert kinds.count("serves") == 2
    assert kinds.count("text") >= 8
    assert all(kind in ("sh", "python", "serves", "text") for kind in kinds)


@contextmanager
def server(command: str, folder: Path, env: dict[str, str]) -> Iterator[None]:
    """A command that serves, until it is stopped."""
    found = re.search(r"--port (\d+)", command)
    assert found is not None, command
    path = "health" if " engine " in command else "ready"
    log = folder / f"{found[1]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            shlex.split(command), cwd=folder, env=env, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        began = time.monotonic()
        while not answers(f"http://127.0.0.1:{found[1]}/{path}"):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() - began < 900, log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.5)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answers(url: str) -> bool:
    """Whether a server says that it is ready."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def free_ports(text: str) -> dict[str, str]:
    """A free port for each that the page names."""
    with ExitStack() as stack:
        probes = {
            port: stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for port in sorted(set(_PORT.findall(text)))
        }
        return {port: str(probe.getsockname()[1]) for port, probe in probes.items()}


def checkout(folder: Path) -> None:
    """What a checkout in which ``make setup`` has run looks like to the commands."""
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "vora_serve" / "demo").mkdir(parents=True)
    demo = Path("vora_serve", "demo", "checkpoint")
    (folder / demo).symlink_to(ROOT / demo)


def figures(folder: Path) -> None:
    """The page's images: some photos of each label in two rows, and the plotted losses."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    labels = sorted(path for path in (folder / "photos").iterdir())
    sheet = Image.new("RGB", (66 * 12, 66 * 2), "white")
    for row, label in enumerate(labels):
        for column, name in enumerate(SHOWN):
            with Image.open(label / f"{name}.png") as photo:
                sheet.paste(photo, (66 * (6 * (row % 2) + column), 66 * (row // 2)))
    sheet.save(FIGURES / "photos.png", optimize=True)
    shutil.copy(folder / "photos-model-run" / "metrics.png", FIGURES / "losses.png")


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_the_tutorial_gives_what_it_says(tmp_path: Path) -> None:
    checkout(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    ports = free_ports(page)
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    env["PATH"] = os.pathsep.join(
        part for part in env["PATH"].split(os.pathsep) if part != str(Path(sys.prefix, "bin"))
    )
    env.pop("VORA_BASE_URL", None)
    wrong: list[str] = []
    printed: list[tuple[Step, str]] = []
    said = ""
    with ExitStack() as stack:
        for step in steps(page):
            code = _PORT.sub(lambda found: ports[found[0]], step.code)
            if step.kind == "text":
                printed.append((step, said))
                if not step.varies:
                    wrong += differences(said, step.code)
                said = ""
            elif step.kind == "serves":
                for line in code.splitlines():
                    stack.enter_context(server(line, tmp_path, env))
            else:
                said += run(step.kind, code, ports, tmp_path, env)
    if WRITE:
        for step, text in reversed(printed):
            page = page[: step.start] + text + page[step.end :]
        PAGE.write_text(page, encoding="utf-8")
        figures(tmp_path)
    else:
        assert not wrong, "\n\n".join(wrong)


def run(kind: str, code: str, ports: dict[str, str], folder: Path, env: dict[str, str]) -> str:
    """What a block prints, with the page's ports."""
    if "--base-url" not in code and "8000" in ports:
        env = {**env, "VORA_BASE_URL": f"http://127.0.0.1:{ports['8000']}"}
    name = {"sh": "block.sh", "python": "block.py"}[kind]
    (folder / name).write_text(code, encoding="utf-8")
    program = ["bash", "-euo", "pipefail"] if kind == "sh" else [".venv/bin/python"]
    done = subprocess.run(
        [*program, name], cwd=folder, env=env, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout
