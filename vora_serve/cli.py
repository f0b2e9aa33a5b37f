"""The ``vora-serve`` command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vora_core.errors import ConfigError, VoRAError
from vora_core.installation import remedy
from vora_serve import __version__
from vora_serve.base.cli import app as base_app
from vora_serve.command import App
from vora_serve.demo.cli import app as demo_app
from vora_serve.engine_flags import ENGINE_ARGS, EngineCommand
from vora_serve.evaluation.cli import app as evaluation_app
from vora_serve.explain.cli import app as explain_app
from vora_serve.export_cli import app as export_app
from vora_serve.keys import app as keys_app
from vora_serve.loadtest_command import app as loadtest_app
from vora_serve.training.cli import app as training_app

app = App(
    name="vora-serve",
    help="Train, merge, evaluate and serve VoRA models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
config_app = App(help="Check or print the gateway's settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")
app.add_typer(base_app, name="base")
app.add_typer(demo_app, name="demo")
for commands in (loadtest_app, training_app, export_app, evaluation_app, explain_app):
    app.add_typer(commands)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]

#: A module of these that is absent is a fault of this program, not of the installation.
_OWN_PACKAGES = frozenset({"vora_core", "vora_serve", "model_plugin", "loadtest"})


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

* vora-serve serve vora_serve/demo/checkpoint

* vora-serve serve ORG/NAME --port 8080 --max-model-len 4096

* vora-serve serve --upstream http://10.0.0.5:8001 --keys keys.yaml --host 0.0.0.0
"""
_CHAT_EXAMPLES = """Examples:

* vora-serve chat --image cat.jpg "What is this?"

* vora-serve chat --base-url http://10.0.0.5:8000

* echo "Count the shapes." | vora-serve chat --image scene.png
"""


ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="VoRA checkpoint: folder or Hugging Face hub id."),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PATH",
        help="Vision adapter beside a plain LLM, as a model of this name; repeatable.",
    ),
]
AdaptersFolder = Annotated[
    Path | None, typer.Option(help="Folder whose adapters may be loaded at run time.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="The same as the argument.")]


@app.command(cls=EngineCommand, epilog=_SERVE_EXAMPLES, options_metavar="[OPTIONS] [VLLM OPTIONS]")
def serve(
    context: typer.Context,
    model: ModelArgument = None,
    model_option: ModelOption = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="URL of a running engine: http(s)://… or unix:/…; repeatable."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 selects a free port [8000].")
    ] = None,
    config: ConfigOption = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="Model name that requests use; repeatable.")
    ] = None,
    vision_adapter: AdapterOption = None,
    adapters_folder: AdaptersFolder = None,
    workers: Annotated[int | None, typer.Option(help="Gateway processes [1].")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="YAML file with the hashes of API keys.")
    ] = None,
    allow_anonymous: Annotated[
        bool | None,
        typer.Option(
            "--allow-anonymous/--no-allow-anonymous",
            help="Accept requests without API keys from other machines.",
        ),
    ] = None,
    allow_image_network: Annotated[
        list[str] | None,
        typer.Option(help="Private network (CIDR) to fetch images from; repeatable."),
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the engine's output.")] = False,
) -> None:
    """Serve a model through the gateway, or put the gateway in front of running engines.

    Unknown options are passed to vLLM, for example --max-model-len 4096. Options after -- are
    always passed to vLLM.
    """
    from vora_serve.serve import run_service

    engine_args: list[str] = context.meta[ENGINE_ARGS]
    if upstream and engine_args:
        context.fail(f"No such option: {engine_args[0]}. With --upstream, no engine is started.")
    flags: dict[str, Any] = {}

    def put(section: str, name: str, value: Any) -> None:
        if value is not None and value != []:  # 0 and False are values
            flags.setdefault(section, {})[name] = value

    put("engine", "model", _one_model(model, model_option))
    put("engine", "served_model_name", served_model_name)
    put("engine", "args", engine_args)
    put("engine", "vision_adapters", _adapters(vision_adapter) or None)
    put("engine", "adapters_folder", str(adapters_folder) if adapters_folder else None)
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


def _adapters(given: list[str] | None) -> dict[str, str]:
    """Name to folder of ``NAME=PATH`` entries.

    Raises:
        ConfigError: an entry has another form, or a name comes twice.
    """
    adapters: dict[str, str] = {}
    for entry in given or []:
        name, sign, path = entry.partition("=")
        if not name or not sign or not path:
            raise ConfigError(f"--vision-adapter takes NAME=PATH, not {entry}.")
        if name in adapters:
            raise ConfigError(f"Two vision adapters are called {name}.")
        adapters[name] = path
    return adapters


def _one_model(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None:
        raise ConfigError(f"Give one model: either {argument} or --model {option}.")
    return argument if argument is not None else option


@app.command(cls=EngineCommand, options_metavar="[OPTIONS] [VLLM OPTIONS]")
def engine(
    context: typer.Context,
    model: ModelArgument = None,
    model_option: ModelOption = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 selects a free port [8001].")
    ] = None,
    uds: Annotated[Path | None, typer.Option(help="Unix socket instead of a port.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    vision_adapter: AdapterOption = None,
    adapters_folder: AdaptersFolder = None,
) -> None:
    """Run the engine without the gateway. Unknown options are passed to vLLM."""
    from vora_serve.engine import AdapterFlags, check_checkpoint, check_engine_installed
    from vora_serve.engine.launch import engine_command, engine_environment, safe_flags
    from vora_serve.gateway.listen import bind

    location = _one_model(model, model_option)
    if location is None:
        raise ConfigError("Give a model: vora-serve engine MODEL, or --model MODEL.")
    if uds is not None and port is not None:
        raise ConfigError("Give either --port or --uds, not both.")
    _adapters(vision_adapter)
    adapters = AdapterFlags(vision_adapter or [], adapters_folder)
    checkpoint = check_checkpoint(location, host=bool(adapters))
    check_engine_installed()
    command = [*engine_command(), "--model", checkpoint.location]
    args: list[str] = context.meta[ENGINE_ARGS]
    given = {argument.split("=", 1)[0] for argument in args}
    if uds is not None:
        command += ["--uds", str(uds)]
    else:
        # Check the port now, not after a minute of loading. Port 0 becomes a free one here.
        with bind(host, 8001 if port is None else port) as listener:
            port = listener.getsockname()[1]
        sys.stderr.write(f"vora-serve: the engine will be on http://{host}:{port}\n")
        command += ["--host", host, "--port", str(port)]
    if "--served-model-name" not in given:
        command += ["--served-model-name", checkpoint.name]
    for flag, values in safe_flags(16).items():
        if flag not in given:
            command += [flag, *values]
    command += adapters.command()
    environment = engine_environment(os.environ, None)
    os.execve(sys.executable, [*command, *args], environment)


@app.command(epilog=_CHAT_EXAMPLES)
def chat(
    question: Annotated[
        str | None, typer.Argument(help="A question; without it, a conversation starts.")
    ] = None,
    base_url: Annotated[
        str, typer.Option(envvar="VORA_BASE_URL", help="URL of the server.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="Model name [the first that the server lists].")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(help="Image for the first question: file or URL; repeatable."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt [the model's own].")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens in an answer.")
    ] = None,
    seed: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Chat with a served model in the terminal. Type /image PATH to send an image.

    The API key is read from the environment variable VORA_API_KEY.
    """
    from vora_serve.chat import chat as talk

    sampling = {
        "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in sampling.items() if value is not None}
    talk(base_url, model, question, image or [], system, given)


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(help="VoRA checkpoint, folder or Hugging Face hub id; or a vision adapter."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    base: Annotated[
        Path | None, typer.Option(help="Of a vision adapter: the LLM to check it against.")
    ] = None,
) -> None:
    """Describe a checkpoint or a vision adapter, and check whether it can be served."""
    from vora_core.adapter import is_adapter
    from vora_serve import adapter_inspection, inspection

    if is_adapter(Path(path)):
        adapter = adapter_inspection.inspect_adapter(Path(path), base)
        as_text = adapter_inspection.describe
        _say(adapter_inspection.as_json(adapter) if as_json else as_text(adapter))
        raise typer.Exit(0 if adapter.can_be_served else 1)
    if base is not None:
        raise ConfigError(f"{path} is not a vision adapter, so it goes without --base.")
    found = inspection.inspect(path)
    _say(inspection.as_json(found) if as_json else inspection.describe(found))
    raise typer.Exit(0 if found.can_be_served else 1)


@app.command()
def doctor(
    report: Annotated[
        bool, typer.Option("--report", help="Print versions and environment for a bug report.")
    ] = False,
) -> None:
    """Check this machine, and name what is missing and how to install it."""
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
    _say("Ready to serve." if not absent else f"{absent} problem{'s' * (absent > 1)} found.")
    raise typer.Exit(1 if absent else 0)


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Check the settings, including keys, limits and URLs."""
    from vora_serve.gateway import create_app, load_settings
    from vora_serve.gateway.listen import check_exposure

    settings = load_settings(config)
    check_exposure(settings)
    create_app(settings)  # refuses what serving would
    _say("The configuration is valid.")


@config_app.command("show")
def config_show(config: ConfigOption = None) -> None:
    """Print the effective settings as YAML; secrets are masked."""
    import yaml

    from vora_serve.gateway.settings import load_settings

    tree = load_settings(config).model_dump(mode="json")
    _say(yaml.safe_dump(tree, sort_keys=False).rstrip())


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the settings."""
    from vora_serve.gateway.settings import Settings

    _say(json.dumps(Settings.model_json_schema(), indent=2))


def main() -> None:
    """The console script: one sentence and an exit code instead of a traceback."""
    try:
        app()
    except VoRAError as error:
        sys.stderr.write(f"vora-serve: {error}\n")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OWN_PACKAGES:
            raise
        sys.stderr.write(f"vora-serve: {error.name} is not installed. Run: {remedy('train')}\n")
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(1)
