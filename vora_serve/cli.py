"""The ``vora-serve`` command."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from vora_serve import __version__
from vora_serve.command import App
from vora_serve.errors import ConfigurationError, VoRAServeError
from vora_serve.keys import app as keys_app

app = App(
    name="vora-serve",
    help="Train, merge, evaluate and serve VoRA models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
config_app = App(help="Look at the gateway's configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]

_PASS_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_version(asked: bool) -> None:
    if asked:
        _say(f"vora-serve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


_SERVE_EXAMPLES = """Examples:

* vora-serve serve --model vora_serve/demo/checkpoint

* vora-serve serve --model ORG/NAME --port 8080 -- --max-model-len 4096

* vora-serve serve --upstream http://10.0.0.5:8001 --keys keys.yaml --host 0.0.0.0
"""
_CHAT_EXAMPLES = """Examples:

* vora-serve chat --image cat.jpg "What is this?"

* vora-serve chat --base-url http://10.0.0.5:8000

* echo "Count the shapes." | vora-serve chat --image scene.png
"""


@app.command(epilog=_SERVE_EXAMPLES)
def serve(
    model: Annotated[str | None, typer.Option(help="VoRA checkpoint: directory or hub id.")] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="Engine that runs elsewhere: http(s)://… or unix:/…; repeatable."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8000].")] = None,
    config: ConfigOption = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="Name that requests use; repeatable.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Gateway processes [1].")] = None,
    keys: Annotated[Path | None, typer.Option(help="YAML file with API keys' hashes.")] = None,
    allow_anonymous: Annotated[
        bool | None,
        typer.Option(
            "--allow-anonymous/--no-allow-anonymous", help="Serve others without API keys."
        ),
    ] = None,
    allow_image_network: Annotated[
        list[str] | None,
        typer.Option(help="Private network (CIDR) that images may come from; repeatable."),
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the engine's output.")] = False,
    engine_args: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM_FLAGS...]", help="Flags for vLLM's API server."),
    ] = None,
) -> None:
    """Serve a model: gateway plus a supervised engine, or in front of engines elsewhere."""
    from vora_serve.serve import run_service

    flags: dict[str, Any] = {}

    def put(section: str, name: str, value: Any) -> None:
        if value is not None and value != []:  # 0 and False are values
            flags.setdefault(section, {})[name] = value

    put("engine", "model", model)
    put("engine", "served_model_name", served_model_name)
    put("engine", "args", engine_args)
    put("server", "host", host)
    put("server", "port", port)
    put("server", "workers", workers)
    put("auth", "keys_file", str(keys) if keys is not None else None)
    put("auth", "allow_anonymous", allow_anonymous)
    put("images", "allow_networks", allow_image_network)
    put("logging", "format", log_format)
    if upstream:
        flags["upstreams"] = upstream
    raise typer.Exit(run_service(config, flags, verbose))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def engine(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="VoRA checkpoint: directory or hub id.")],
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1 [8001].")] = None,
    uds: Annotated[Path | None, typer.Option(help="Unix socket instead of a port.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Run the engine alone; further flags are vLLM's."""
    from vora_serve.engine import check_checkpoint, check_engine_installed
    from vora_serve.engine.launch import engine_command, engine_environment, safe_flags
    from vora_serve.gateway.listen import bind

    checkpoint = check_checkpoint(model)
    check_engine_installed()
    command = [*engine_command(), "--model", checkpoint.location]
    given = {argument.split("=", 1)[0] for argument in context.args}
    if uds is not None:
        if port is not None:
            raise ConfigurationError("Give either --port or --uds, not both.")
        command += ["--uds", str(uds)]
    else:
        # In use? Said now, not after a minute of loading. Port 0 becomes a free one here.
        with bind(host, 8001 if port is None else port) as listener:
            port = listener.getsockname()[1]
        sys.stderr.write(f"vora-serve: the engine will be on http://{host}:{port}\n")
        command += ["--host", host, "--port", str(port)]
    if "--served-model-name" not in given:
        command += ["--served-model-name", checkpoint.name]
    for flag, values in safe_flags(16).items():
        if flag not in given:
            command += [flag, *values]
    environment = engine_environment(os.environ, None)
    os.execve(sys.executable, [*command, *context.args], environment)


@app.command(epilog=_CHAT_EXAMPLES)
def chat(
    question: Annotated[
        str | None, typer.Argument(help="One question; without it, a conversation.")
    ] = None,
    base_url: Annotated[
        str, typer.Option(envvar="VORA_BASE_URL", help="Where the server is.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Which model [the first].")] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="Picture, file or URL, for the first question.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt [the model's own].")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Talk to a served model in the terminal; /image PATH shows it a picture.

    The API key comes from the environment variable VORA_API_KEY.
    """
    from vora_serve.chat import chat as talk

    sampling = {
        "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in sampling.items() if value is not None}
    talk(base_url, model, question, image or [], system, given)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="VoRA checkpoint: directory or hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a checkpoint is and whether it can be served; loads no weights."""
    from vora_serve import inspection

    found = inspection.inspect(path)
    _say(inspection.as_json(found) if as_json else inspection.describe(found))
    raise typer.Exit(0 if found.can_be_served else 1)


@app.command()
def doctor(
    report: Annotated[
        bool, typer.Option("--report", help="Print versions and environment for a bug report.")
    ] = False,
) -> None:
    """Say what this machine has and what is missing."""
    from vora_serve.doctor import findings

    if report:
        from vora_serve.report import report as whole

        _say(whole())
        raise typer.Exit
    marks = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}
    found = findings()
    for finding in found:
        _say(f"{marks[finding.state]}  {finding.text}")
    absent = sum(finding.state == "missing" for finding in found)
    _say("Everything is there." if not absent else f"{absent} thing(s) missing.")
    raise typer.Exit(1 if absent else 0)


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Check the configuration, the keys, limits and URLs in it, and say whether it is right."""
    from vora_serve.gateway import create_app, load_settings
    from vora_serve.gateway.listen import check_exposure

    settings = load_settings(config)
    check_exposure(settings)
    create_app(settings)  # refuses what serving would
    _say("The configuration is right.")


@config_app.command("show")
def config_show(config: ConfigOption = None) -> None:
    """Print the settings in force, secrets masked, as YAML."""
    import yaml

    from vora_serve.gateway.settings import load_settings

    tree = load_settings(config).model_dump(mode="json")
    _say(yaml.safe_dump(tree, sort_keys=False).rstrip())


@config_app.command("schema")
def config_schema() -> None:
    """Print the settings' JSON schema."""
    from vora_serve.gateway.settings import Settings

    _say(json.dumps(Settings.model_json_schema(), indent=2))


def _delegate(name: str, module: str, whole_app: bool, summary: str) -> None:
    """Add a command that another module's typer app carries out, imported when it is called."""

    def run(context: typer.Context) -> None:
        try:
            other: typer.Typer = import_module(module).app
        except ModuleNotFoundError as error:
            raise VoRAServeError(
                f"'vora-serve {name}' needs {error.name}, which is not installed."
            ) from None
        arguments = context.args if whole_app else [name, *context.args]
        if not whole_app and len(other.registered_commands) == 1 and not other.registered_groups:
            arguments = context.args  # typer makes a single command the app itself
        other(args=arguments, prog_name=f"vora-serve {name}" if whole_app else "vora-serve")

    run.__doc__ = summary
    app.command(name, context_settings=_PASS_ON)(run)


_delegate("pretrain", "vora_serve.training.cli", False, "Teach an LLM to see with LoRA layers.")
_delegate("merge", "vora_serve.training.cli", False, "Merge LoRA layers into the LLM's weights.")
_delegate("finetune", "vora_serve.training.cli", False, "Fine-tune a merged model.")
_delegate("plot", "vora_serve.training.cli", False, "Draw a training run's metrics.")
_delegate("evaluate", "vora_serve.evaluation.cli", False, "Measure a model's answers.")
_delegate("explain", "vora_serve.explain.cli", False, "Show where a model looks in a picture.")
_delegate("demo", "vora_serve.demo.cli", True, "Train and look at the demo model.")


@app.command("loadtest", context_settings=_PASS_ON)
def run_loadtest(context: typer.Context) -> None:
    """Measure servers under load, in pairs."""
    # A process of its own: the load test knows servers only by HTTP, and nothing here imports it.
    os.execv(sys.executable, [sys.executable, "-m", "loadtest", *context.args])


def main() -> None:
    """The console script: one sentence and an exit code instead of a traceback."""
    try:
        app()
    except VoRAServeError as error:
        sys.stderr.write(f"vora-serve: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(1)
    except Exception as error:
        # The model side has a tree of its own, which must not be imported for this.
        names = {base.__name__ for base in type(error).__mro__}
        if "VoRAError" not in names:
            raise
        sys.stderr.write(f"vora-serve: {error}\n")
        sys.exit(2 if names & {"ConfigError", "CheckpointError"} else 1)
