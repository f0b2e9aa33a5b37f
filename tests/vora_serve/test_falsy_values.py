"""What a user gives is taken or refused, also when Python counts it as false."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import vora_serve.demo.cli
from loadtest.settings import parse_settings as parse_run
from vora_core import typed_yaml
from vora_core.errors import ConfigError
from vora_serve import cli
from vora_serve.gateway.images.urls import URLPolicy
from vora_serve.gateway.settings import Settings, load_settings
from vora_serve.training.run_recipe import MergeRun

COMMAND = [sys.executable, "-c", "from vora_serve.cli import main; main()"]
FREE_TEXT = {"--prompt", "--answer", "--system"}


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names, command) of every command at or below one."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
    for name, one in (below or {}).items():
        yield from commands(one, (*path, name))


def valued_options() -> Iterator[Any]:
    """Every option of every command whose value may not be empty: (command, option)."""
    for path, command in commands(get_command(cli.app)):
        for param in command.params:
            option = param.opts[0]
            if option.startswith("--") and not param.is_flag and option not in FREE_TEXT:
                yield pytest.param(path, option, id=" ".join((*path, option)))


def test_options_of_every_command_are_seen() -> None:
    seen = {" ".join(given.values[0]) for given in valued_options()}  # type: ignore[arg-type]
    assert seen >= {"serve", "engine", "evaluate", "explain", "pretrain", "merge", "demo train"}


@pytest.mark.parametrize(("path", "option"), list(valued_options()))
def test_every_option_refuses_an_empty_value(path: tuple[str, ...], option: str) -> None:
    result = CliRunner().invoke(cli.app, [*path, option, ""])
    assert result.exit_code == 2
    assert option in result.output
    assert "The value is" in result.output  # a frame may break the line before "empty"
    assert "empty" in result.output


def serve_flags(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What ``vora-serve serve`` hands on of its arguments."""
    seen: dict[str, Any] = {}

    def run_service(config: Path | None, flags: dict[str, Any], verbose: bool) -> int:
        seen.update(flags)
        return 0

    monkeypatch.setattr("vora_serve.serve.run_service", run_service)
    result = CliRunner().invoke(cli.app, ["serve", *arguments])
    assert result.exit_code == 0, result.output
    return seen


def test_serve_hands_on_what_was_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve_flags(monkeypatch) == {}
    assert serve_flags(
        monkeypatch, "--port", "0", "--workers", "0", "--no-allow-anonymous", "--", ""
    ) == {
        "server": {"port": 0, "workers": 0},
        "auth": {"allow_anonymous": False},
        "engine": {"args": [""]},
    }


def test_flags_win_over_the_file_also_with_zero_and_false(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("server: {port: 9000}\nauth: {allow_anonymous: true}\n")
    flags = {"server": {"port": 0}, "auth": {"allow_anonymous": False}}
    settings = load_settings(file, flags)
    assert settings.server.port == 0
    assert settings.auth.allow_anonymous is False


def texts(model: Any, where: str = "") -> Iterator[str]:
    """Dotted names of the settings that may be a text."""
    for name, field in model.model_fields.items():
        place = f"{where}{name}"
        if hasattr(field.annotation, "model_fields"):
            yield from texts(field.annotation, f"{place}.")
        elif "str" in repr(field.annotation).lower() or "Path" in repr(field.annotation):
            yield place


@pytest.mark.parametrize("where", list(texts(Settings)))
def test_no_setting_takes_an_empty_text(where: str) -> None:
    section, _, name = where.partition(".")
    tree: dict[str, Any] = {section: {name: ""} if name else ""}
    with pytest.raises(ConfigError, match=rf"In the settings, {where} is empty\."):
        load_settings(None, tree)


def test_empty_texts_inside_lists_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"In the settings, upstreams\.0\.api_key is empty"):
        load_settings(None, {"upstreams": [{"url": "http://x", "api_key": ""}]})
    with pytest.raises(ConfigError, match=r"engine\.served_model_name\.0 is empty"):
        load_settings(None, {"engine": {"served_model_name": [""]}})
    assert load_settings(None, {"engine": {"args": ["--x", ""]}}).engine.args == ["--x", ""]
    monkeypatch.setenv("VORA_SERVE_SERVER__HOST", "")
    with pytest.raises(ConfigError, match=r"server\.host is empty"):
        load_settings()


def test_recipes_and_run_files_take_no_empty_text_either() -> None:
    with pytest.raises(ConfigError, match=r"In the run file, servers\.0\.model is empty"):
        parse_run({"servers": [{"model": ""}]})
    with pytest.raises(ConfigError, match=r"In the recipe, out is empty\."):
        typed_yaml.validate(MergeRun, {"source": "x", "out": ""}, subject="recipe")
    server = {"name": "a", "kind": "url", "url": "http://x", "args": [""], "env": {"A": ""}}
    workload = {"name": "w", "concurrency": [1]}
    run = parse_run({"name": "r", "servers": [server], "workloads": [workload]})
    assert run.servers[0].args == [""]


def test_an_empty_list_of_allowed_hosts_allows_none() -> None:
    from vora_core.errors import ImageRequestError

    assert URLPolicy(["https"]).parse("https://a.example/").host == "a.example"
    with pytest.raises(ImageRequestError, match="not allowed"):
        URLPolicy(["https"], allow_hosts=[]).parse("https://a.example/")


def test_port_0_is_a_free_port_while_the_default_is_taken(tmp_path: Path) -> None:
    """The engine says which port it found before it loads anything."""
    demo = Path(vora_serve.demo.cli.__file__).parent / "checkpoint"
    # An interpreter that ends where vLLM would begin.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.execve = lambda *a: (print(*a[1]), os._exit(0))\n"
    )
    done = subprocess.run(
        [*COMMAND, "engine", "--model", str(demo), "--port", "0"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = done.stderr.strip().rsplit(":", 1)[1]
    assert int(said) > 0
    assert f"--port {said}" in done.stdout
