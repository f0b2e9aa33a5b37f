"""Completion, help and the report for bugs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests.command_line import run
from vora_serve.cli import app

SCRIPT = [sys.executable, "-c", "from vora_serve.cli import main; main()"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str) -> None:
    from typer._completion_classes import BashComplete, FishComplete, ZshComplete
    from typer.main import get_command

    from vora_serve.cli import app

    kind = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}[shell]
    complete = kind(get_command(app), {}, "vora-serve", "_VORA_SERVE_COMPLETE")
    assert {item.value for item in complete.get_completions([], "e")} == {
        "engine", "evaluate", "explain", "export",
    }  # fmt: skip
    assert "--upstream" in {item.value for item in complete.get_completions(["serve"], "--u")}
    for command, option in (("pretrain", "--dry-run"), ("evaluate", "--suite")):
        assert option in {item.value for item in complete.get_completions([command], option[:4])}
    assert {item.value for item in complete.get_completions(["demo"], "")} == {
        "train", "adapters", "image",
    }  # fmt: skip


def completed(words: list[str], part: str) -> set[str]:
    """What a shell offers after these words."""
    from typer._completion_classes import BashComplete
    from typer.main import get_command

    complete = BashComplete(get_command(app), {}, "vora-serve", "_VORA_SERVE_COMPLETE")
    return {item.value for item in complete.get_completions(words, part)}


def test_shells_complete_the_words_of_the_load_test() -> None:
    assert completed(["loadtest"], "re") == {"report"}
    assert completed(["loadtest", "run"], "--o") == {"--out"}
    assert "gpu-7b" in completed(["loadtest", "run"], "")
    assert completed(["loadtest", "vora"], "") == {"build"}


def test_usage_lines_name_the_command_that_was_typed() -> None:
    done = subprocess.run([*SCRIPT, "loadtest", "run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert " loadtest run" in done.stderr.splitlines()[0]
    assert "python -m" not in done.stderr


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize("command", ["serve", "chat", "explain"])
def test_help_has_examples(command: str) -> None:
    told = CliRunner().invoke(app, [command, "--help"])
    assert told.exit_code == 0, told.output
    assert "Example" in told.stdout
    assert f"vora-serve {command}" in told.stdout


def test_help_waits_for_no_framework() -> None:
    code = (
        "import sys\nfrom vora_serve.cli import app\nimport vora_serve.explain.cli\n"
        "sys.exit(bool({'torch', 'transformers', 'vllm', 'fastapi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_report_has_versions_and_no_secrets() -> None:
    secrets = {
        "HF_TOKEN": "hf_verysecret",
        "VORA_API_KEY": "sk-verysecret",
        "VORA_SERVE_TRACING__ENABLED": "true",
        "OMP_NUM_THREADS": "2",
        "VLLM_CACHE_ROOT": "/home/somebody/cache",
        "UNRELATED": "verysecret",
    }
    told = run("doctor", "--report", **secrets)
    assert told.returncode == 0, told.stderr
    for part in ("| vora-serve |", "| torch |", "### Doctor", "- `OMP_NUM_THREADS`: 2"):
        assert part in told.stdout
    assert "- `HF_TOKEN`: (set)" in told.stdout
    for hidden in ("verysecret", "somebody", "UNRELATED", os.path.expanduser("~") + "/"):
        assert hidden not in told.stdout
