"""``vora-serve export`` and ``inspect`` of vision adapters, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.checkpoints import FIXTURES
from tests.model_plugin.test_adapters import write_run
from vora_core.errors import ConfigError, VoRAError
from vora_serve.cli import app


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, VoRAError):
        raise result.exception
    return result


def test_export_inspect_merge(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert command("export", run, tmp_path / "llm", "--llm").exit_code == 0
    made = command("export", run, tmp_path / "adapter", "--adapter", "--base-name", "tiny")
    assert made.stdout == f"The adapter is in {tmp_path / 'adapter'}.\n"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "`tiny`" in card
    assert "rank 8 on 14 linear layers" in card

    text = command("inspect", tmp_path / "adapter").stdout
    assert "trained on" in text
    assert "rank 8 on 14 linear layers of 2 blocks" in text
    asked = ("inspect", tmp_path / "adapter", "--base", tmp_path / "llm", "--json")
    found = json.loads(command(*asked).stdout)
    assert found["can_be_served"] is True
    assert found["base_name"] == "tiny"
    assert found["image_tokens"]["640x480"] == 64

    merged = tmp_path / "merged"
    source = f"source={tmp_path / 'adapter'}"
    done = command("merge", source, f"base={tmp_path / 'llm'}", f"out={merged}")
    assert "agree on a probe" in done.stdout
    assert command("inspect", merged).exit_code == 0


def test_truncation_is_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    said = command("export", run, tmp_path / "out", "--adapter", "--rank", 4).stdout
    assert said.startswith("Truncated from rank 8 to 4: keeps ")
    assert "truncated from 8, which keeps" in command("inspect", tmp_path / "out").stdout
    assert "truncated from rank 8" in (tmp_path / "out" / "README.md").read_text()


def test_another_llm_and_a_rank_too_high_are_problems(tmp_path: Path) -> None:
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other", seed=3)
    command("export", run, tmp_path / "adapter", "--adapter")
    command("export", other, tmp_path / "llm", "--llm")
    found = command("inspect", tmp_path / "adapter", "--base", tmp_path / "llm")
    assert found.exit_code == 1
    assert "was trained on another LLM" in found.stdout
    high = write_run(tmp_path / "high", config={"lora": {"r": 600, "layers": 1, "target_modules": ["mlp.up_proj"]}})  # fmt: skip # noqa: E501
    said = command("export", high, tmp_path / "much", "--adapter").stdout
    assert "Rank 600 can be merged, not served beside its LLM" in said
    found = command("inspect", tmp_path / "much")
    assert found.exit_code == 1
    assert "takes ranks up to 512. Truncate it" in found.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--adapter or --llm"),
        (["--adapter", "--llm"], "--adapter or --llm"),
        (["--llm", "--rank", "4"], "go with --adapter"),
        (["--adapter", "--dtype", "int8"], "not int8"),
        (["--adapter", "--base", "llm"], "goes without a base LLM"),
    ],
)
def test_usage(tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        command("export", FIXTURES / "pretrain", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
