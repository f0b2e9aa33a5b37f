"""Every command in an environment that has done ``make demo`` and no more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from tests.lean import dev_only, environment
from tests.vora_serve.test_falsy_values import commands
from vora_core import installation
from vora_serve.cli import app

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "vora_serve" / "demo" / "checkpoint"
#: Commands that need what ``make setup`` installs.
NEED_MORE = {
    "pretrain": ["--config", "small_pretrain_i8m", "--dry-run"],
    "finetune": ["--config", "small_finetune_native"],
    "merge": ["source=a", "out=b"],
    "plot": ["."],
    "base import": ["smollm2", "--out", "base"],
    "demo train": ["--run", "run"],
}


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("lean"), dev_only())


def run(
    lean: dict[str, str], folder: Path, *arguments: str, module: str = "vora_serve"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder, env=lean, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def names() -> Iterator[str]:
    for path, _ in commands(get_command(app)):
        yield " ".join(path)


def test_the_environment_is_lean(lean: dict[str, str], tmp_path: Path) -> None:
    code = "import importlib.metadata as m, torch; m.version('torch'); import matplotlib"
    done = subprocess.run(
        [sys.executable, "-c", code], env=lean, capture_output=True, text=True, cwd=tmp_path
    )
    assert "No module named 'matplotlib'" in done.stderr
    code = "import importlib.metadata as m; m.version('peft')"
    done = subprocess.run([sys.executable, "-c", code], env=lean, capture_output=True, text=True)
    assert "PackageNotFoundError" in done.stderr


def test_help_always_works(lean: dict[str, str], tmp_path: Path) -> None:
    """In one process, for time's sake: every command, in both spellings."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from vora_serve.cli import app\n"
        "for name in sys.argv[1:]:\n"
        "    for option in ('--help', '-h'):\n"
        "        done = CliRunner().invoke(app, [*name.split(), option], prog_name='vora-serve')\n"
        "        assert done.exit_code == 0, (name, done.output, done.exception)\n"
        "        assert f'Usage: vora-serve {name}' in done.output, done.output\n"
    )
    asked = [name for name in names() if name != "loadtest"]
    assert {"pretrain", "evaluate", "explain", "demo train", "keys new"} <= set(asked)
    done = subprocess.run(
        [sys.executable, "-c", code, *asked],
        env=lean, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run(lean, tmp_path, "--help", module="loadtest").returncode == 0


@pytest.mark.parametrize("name", NEED_MORE)
def test_what_is_missing_is_said_before_anything_is_done(
    lean: dict[str, str], tmp_path: Path, name: str
) -> None:
    done = run(lean, tmp_path, *name.split(), *NEED_MORE[name])
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, said
    assert name in said[0]
    assert "not installed. Run: " in said[0]
    assert said[0].rpartition("Run: ")[2] in (
        f"make -C {ROOT} setup",
        f"{sys.executable} -m pip install -e '{ROOT}[train]'",
    )
    assert list(tmp_path.iterdir()) == []


def test_what_needs_no_more_works(lean: dict[str, str], tmp_path: Path) -> None:
    for arguments in (
        ["demo", "image", "scene.png"],
        ["demo", "image", "digit.png", "--digit"],
        ["inspect", str(DEMO)],
        ["explain", "--model", str(DEMO), "--image", "scene.png", "--out", "seen"],
        ["evaluate", "--suite", "demo", "--limit", "2", "--dry-run"],
        ["keys", "new", "alice"],
        ["config", "show"],
    ):
        done = run(lean, tmp_path, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    assert (tmp_path / "digit.png").is_file()
    assert (tmp_path / "seen" / "image-1.png").is_file()


def test_a_load_test_that_could_not_report_does_not_start(
    lean: dict[str, str], tmp_path: Path
) -> None:
    done = run(lean, tmp_path, "run", "tiny", "--out", "out", module="loadtest")
    assert done.returncode == 2, done.stderr
    assert "matplotlib" in done.stderr
    assert "Run: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_doctor_names_remedies(lean: dict[str, str], tmp_path: Path) -> None:
    done = run(lean, tmp_path, "doctor")
    lines = [line for line in done.stdout.splitlines() if "not installed" in line]
    assert any(line.startswith("note") and "training" in line for line in lines)
    assert all("Run: " in line for line in done.stdout.splitlines() if "MISSING" in line)
    assert all("Run: " in line for line in lines)
    assert not any(line.startswith("MISSING") for line in lines), "serving needs none of these"


def test_extras_are_read_from_the_distribution() -> None:
    assert {"torch", "transformers", "peft", "pyarrow"} <= set(installation.packages("train"))
    assert "peft" not in installation.packages("model")
    assert installation.packages("no-such-extra") == []


def test_the_remedy_fits_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert installation.remedy("train") == f"{sys.executable} -m pip install 'vora-serve[train]'"
    script = tmp_path / "docker" / "requirements" / "install.sh"
    script.parent.mkdir(parents=True)
    script.touch()
    assert installation.remedy("train") == f"make -C {tmp_path} setup"
    monkeypatch.chdir(tmp_path)
    assert installation.remedy("train") == "make setup"
    monkeypatch.setattr(sys, "prefix", "/elsewhere")
    assert installation.remedy("train").endswith(f"pip install -e '{tmp_path}[train]'")
