"""Options of this program told apart from vLLM's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tests.deploy.tools import LIMIT_S, run
from vora_serve import cli
from vora_serve.engine_flags import split

OWN = {"--model": True, "--port": True, "--config": True, "--verbose": False, "-h": False}


def fail(message: str) -> NoReturn:
    raise ValueError(message)


@pytest.mark.parametrize(
    ("line", "mine", "engine"),
    [
        ("m --port 1", "m --port 1", ""),
        ("m --max-model-len 9 --port 1", "m --port 1", "--max-model-len 9"),
        ("m --enforce-eager --verbose", "m --verbose", "--enforce-eager"),
        ("--port=1 m -O3 -tp 2", "--port=1 m", "-O3 -tp 2"),
        ("m --allowed-origins a b --port 1 x", "m --port 1 x", "--allowed-origins a b"),
        ("m --port 1 -- --port 2", "m --port 1", "--port 2"),
        ("--port -1 m", "--port -1 m", ""),
        ("m --port", "m --port", ""),
        ("m --limit-mm-per-prompt {}", "m", "--limit-mm-per-prompt {}"),
    ],
)
def test_splitting(line: str, mine: str, engine: str) -> None:
    assert split(line.split(), OWN, fail) == (mine.split(), engine.split())


@pytest.mark.parametrize(
    "wrong", ["--modle", "--prot", "--confg", "--verbos", "--modell", "--poet"]
)
def test_typing_errors_are_not_passed_to_vllm(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"No such option: {wrong}. Did you mean --"):
        split([wrong, "x"], OWN, fail)


def serve(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[dict[str, Any], Any]:
    """The settings that ``vora-serve serve`` makes of its arguments, and the result."""
    seen: dict[str, Any] = {}

    def run_service(config: Path | None, flags: dict[str, Any], verbose: bool) -> int:
        seen.update(flags)
        return 0

    monkeypatch.setattr("vora_serve.serve.run_service", run_service)
    return seen, CliRunner().invoke(cli.app, ["serve", *arguments])


def test_a_model_is_an_argument_or_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["a/b"], ["--model", "a/b"], ["--port", "1", "a/b"]):
        seen, done = serve(monkeypatch, *arguments, "--max-model-len", "4096")
        assert done.exit_code == 0, done.output
        assert seen["engine"] == {"model": "a/b", "args": ["--max-model-len", "4096"]}
    _, done = serve(monkeypatch, "a", "--model", "b")
    assert "Give one model" in str(done.exception)
    _, done = serve(monkeypatch, "--upstream", "http://x", "--max-model-len", "4096")
    assert done.exit_code == 2
    assert "No such option: --max-model-len" in done.output


@pytest.fixture(scope="module")
def vllm_options() -> list[str]:
    code = (
        "from model_plugin.engine.compat import mark_cpu_build\n"
        "mark_cpu_build()\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = make_arg_parser(FlexibleArgumentParser())\n"
        "print('OPTIONS', *(o for action in parser._actions for o in action.option_strings))\n"
    )
    printed = run([sys.executable, "-c", code]).partition("OPTIONS ")[2].splitlines()[0]
    return [option for option in printed.split() if option.startswith("--")]


@pytest.mark.timeout(LIMIT_S + 100)  # vLLM is imported for its parser
@pytest.mark.parametrize("command", ["serve", "engine"])
def test_no_option_of_vllm_looks_like_a_typing_error(command: str, vllm_options: list[str]) -> None:
    assert len(vllm_options) > 150
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    own = {name: True for param in commands[command].params for name in param.opts}
    refused = []
    for option in vllm_options:
        try:
            split([option], own, fail)
        except ValueError as error:
            refused.append(str(error))
    assert refused == []
