"""Every command, flag, path, port and variable in the deployment files is one that is accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml

from hatch_build import PACKAGES
from loadtest.cli import parser
from loadtest.settings import load_settings as load_run
from tests.deploy import compose, dockerfile, kubernetes
from tests.deploy.tools import LIMIT_S, ask_vllm, run, tool
from vora_core.errors import ConfigError
from vora_serve.cli import app
from vora_serve.engine.launch import safe_flags
from vora_serve.engine_flags import ENGINE_ARGS
from vora_serve.gateway import create_app
from vora_serve.gateway.settings import Settings, load_settings

SERVICES = compose.services(profiles=compose.PROFILES)


def runs_vora_serve(service: dict[str, Any]) -> bool:
    """Whether a service starts its image's entry, and that is ``vora-serve``."""
    found = re.search(r"vora-serve-([\w-]+):", service["image"])
    stages = dockerfile.targets()
    return (
        "entrypoint" not in service
        and found is not None
        and stages[found[1]].entrypoint == ["vora-serve"]
    )


def own_commands() -> Iterator[tuple[str, list[str]]]:
    """Everything that runs ``vora-serve``: where it stands, and its arguments."""
    for environment in compose.ENVIRONMENTS:
        for name, service in compose.services(compose.env_of(environment)).items():
            if runs_vora_serve(service):
                yield f"compose {environment} {name}", service["command"]
    yield "compose gateway-baseline", SERVICES["gateway-baseline"]["command"]
    for target, stage in dockerfile.targets().items():
        if stage.entrypoint == ["vora-serve"] and stage.command:
            yield f"Dockerfile {target}", stage.command
    for overlay in kubernetes.OVERLAYS:
        for resource in kubernetes.workloads(kubernetes.files(overlay)):
            for container in kubernetes.containers(resource):
                own = container["image"].startswith("vora-serve") and "command" not in container
                if own and container.get("args"):
                    yield f"{overlay} {container['name']}", container["args"]


COMMANDS = dict(own_commands())


def parse(arguments: list[str]) -> Any:
    """What ``vora-serve`` makes of its arguments, short of doing it: typer's context."""
    group: Any = typer.main.get_command(app)
    top = group.make_context("vora-serve", list(arguments))
    name, command, rest = group.resolve_command(top, [*top._protected_args, *top.args])
    return command.make_context(name, rest, parent=top)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 12
    assert {arguments[0] for arguments in COMMANDS.values()} == {"serve", "engine", "--help"}


@pytest.mark.parametrize("where", [w for w, a in COMMANDS.items() if a[0] == "serve"])
def test_gateways(where: str) -> None:
    context = parse(COMMANDS[where])
    assert Path(context.params["config"]).parent == Path("/etc/vora-serve")
    assert not context.args
    assert not context.meta[ENGINE_ARGS], "the gateway's options are all its own"


def engine_flags(arguments: list[str]) -> list[str]:
    """What vLLM gets to see of an engine's arguments."""
    context = parse(arguments)
    assert context.params["host"] == "0.0.0.0"
    assert context.params["port"] == 8001
    given = context.meta[ENGINE_ARGS]
    result = ["--model", context.params["model"] or context.params["model_option"], *given]
    for flag, values in safe_flags(16).items():
        if flag not in given:
            result += [flag, *values]
    return result


@pytest.mark.timeout(LIMIT_S + 100)  # vLLM is imported for its parser
def test_engines() -> None:
    engines = [arguments for arguments in COMMANDS.values() if arguments[0] == "engine"]
    assert len(engines) >= 6
    flags = [engine_flags(arguments) for arguments in engines]
    # The published image starts vLLM itself: 'vllm serve' and what follows.
    flags.append(SERVICES["engine-baseline"]["command"])
    flags.append(SERVICES["engine-baseline-cpu"]["command"])
    # The documentation's examples too.
    shown = r"^(?:\.venv/bin/)?vora-serve (engine [^\n]*)$"
    documented = re.findall(shown, _operations(), re.MULTILINE)
    assert documented
    flags += [engine_flags_documented(line.split()) for line in documented]
    names = {
        name
        for service in SERVICES.values()
        for name in service.get("environment", {})
        if name.startswith("VLLM_")
    }
    names |= {
        variable["name"]
        for overlay in kubernetes.OVERLAYS
        for resource in kubernetes.workloads(kubernetes.files(overlay))
        for container in kubernetes.containers(resource)
        for variable in container.get("env", ())
        if variable["name"].startswith("VLLM_")
    }
    assert "VLLM_CPU_KVCACHE_SPACE" in names
    names |= _documented_for_vllm()
    # What does not exist must be refused, or the check would say nothing.
    wrong = ["--model", "m", "--shutdown-timeuot", "3"]
    faults, unknown = ask_vllm([*flags, wrong], [*sorted(names), "VLLM_CPU_KVCACHE"])
    assert [arguments for arguments, _ in faults] == [wrong], faults
    assert unknown == ["VLLM_CPU_KVCACHE"]


def engine_flags_documented(arguments: list[str]) -> list[str]:
    context = parse(arguments)
    return ["--model", context.params["model_option"], *context.meta[ENGINE_ARGS]]


def test_the_check_refuses_what_does_not_exist() -> None:
    with pytest.raises(Exception, match="No such option: --confg"):
        parse(["serve", "--confg", "x"])


def _documented_for_vllm() -> set[str]:
    """vLLM's variables that the documentation names; that vLLM knows them is checked above."""
    return set(re.findall(r"`(VLLM_[A-Z_]+)`", _operations())) - {"VLLM_IMAGE"}


def _operations() -> str:
    return (compose.ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize(
    "path",
    [*(compose.DEPLOY / "gateway").glob("*.yaml"), *kubernetes.gateway_configs()],
    ids=lambda path: "-".join(path.parts[-2:]),
)
def test_settings_are_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same reading as ``vora-serve config check``, with compose's variables set."""
    for name, value in SERVICES["gateway"]["environment"].items():
        monkeypatch.setenv(name, str(value))
    settings = load_settings(path)
    assert settings.server.port == 8000
    assert settings.upstreams
    monkeypatch.setenv("VORA_SERVE_LOGING__LEVEL", "info")
    with pytest.raises(Exception, match="VORA_SERVE_LOGING__LEVEL"):
        load_settings(path)


def _routes() -> set[str]:
    settings = load_settings(flags={"upstreams": ["http://127.0.0.1:9"]})
    return {getattr(route, "path", "") for route in create_app(settings).routes}


def test_paths_and_ports_are_the_programs() -> None:
    routes = _routes()
    probed: list[tuple[str, str]] = []
    for service in SERVICES.values():
        check = service["healthcheck"].get("test", [])
        if "/usr/local/bin/vora-healthcheck" in check:
            probed.append((check[-2], check[-1]))
    for stage in dockerfile.targets().values():
        if stage.healthcheck:
            probed.append((stage.healthcheck[-2], stage.healthcheck[-1]))
    assert {port for port, _ in probed} == {"8000", "8001"}
    for port, path in probed:
        # vLLM's own page is asked by the gateway's monitor too, and by the test of the topology.
        assert path in routes if port == "8000" else path == "/health"
    for overlay in kubernetes.OVERLAYS:
        for resource in kubernetes.workloads(kubernetes.files(overlay)):
            for container in kubernetes.containers(resource):
                for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                    get = container.get(kind, {}).get("httpGet")
                    if get and container["name"] == "gateway":
                        assert get["path"] in routes
    assert {"/health", "/ready", "/metrics"} <= routes


def test_prometheus_flags() -> None:
    known = run([tool("prometheus", "prometheus"), "--help"])
    for argument in SERVICES["prometheus"]["command"]:
        assert argument.split("=")[0] in known


def test_download_flags() -> None:
    known = run([tool("hf", "huggingface_hub"), "download", "--help"])
    flags = [a for a in SERVICES["fetch-model"]["command"] if a.startswith("--")]
    assert flags == ["--local-dir"]
    assert all(flag in known for flag in flags)


def test_the_load_test(tmp_path: Path) -> None:
    """Its command, by its own parser; its run files, by its own reading, for services there are."""
    stage = dockerfile.targets()["loadtest"]
    assert stage.entrypoint == ["vora-serve", "loadtest"]
    for environment in compose.ENVIRONMENTS:
        env = compose.env_of(environment)
        running = compose.services(env, ("loadtest", "baseline"))
        args = parser().parse_args(running["loadtest"]["command"])
        assert args.file.parent == Path("/etc/vora-serve")
        assert args.out.parent == Path("/runs")
        variables = dict(item.split("=", 1) for item in args.set)
        # What the gateway serves, by the name that the engine that is asked gives it.
        engine = running[variables["ENGINE"]]["command"]
        assert variables["MODEL"] == engine[engine.index("--served-model-name") + 1]
        for path in sorted((compose.DEPLOY / "loadtest").glob("*.yaml")):
            for server in load_run(path, variables).servers:
                url = httpx.URL(server.url or "")
                assert url.host in running
                assert url.port == (8000 if url.host.startswith("gateway") else 8001)
                if url.host == "gateway":
                    secret = running["loadtest"]["secrets"][0]["target"]
                    assert server.api_key_file == Path("/run/secrets", secret)
    for line in re.findall(r"run --rm loadtest (.+)$", _operations(), re.MULTILINE):
        parser().parse_args(line.split())
    with pytest.raises(SystemExit):
        parser().parse_args(["run", "file.yaml", "--outt", "x"])
    broken = tmp_path / "broken.yaml"
    text = (compose.DEPLOY / "loadtest" / "gateway.yaml").read_text()
    broken.write_text(text.replace("kind: url", "knid: url"))
    with pytest.raises(ConfigError):
        load_run(broken)


def test_the_twin_on_cpu_starts_a_program_that_there_is() -> None:
    python, flag, module = SERVICES["engine-baseline-cpu"]["entrypoint"]
    assert (python, flag) == ("python", "-m")
    top, _, rest = module.partition(".")
    (package,) = (name for name, own in PACKAGES.items() if own == top)  # as the wheel calls it
    assert find_spec(f"{package}.{rest}") is not None


def test_prometheus_scrapes_services_that_exist() -> None:
    tree: dict[str, Any] = yaml.safe_load(
        (compose.DEPLOY / "prometheus" / "prometheus.yml").read_text()
    )
    engines: set[str] = set()
    for job in tree["scrape_configs"]:
        for dns in job.get("dns_sd_configs", ()):
            assert dns["port"] == 8001
            engines |= set(dns["names"])
    # The twin on CPU answers to the name of the other.
    started = {name for name in SERVICES if name.startswith("engine")}
    assert engines == started - {"engine-baseline-cpu"}
    gateway = tree["scrape_configs"][0]
    assert gateway["static_configs"][0]["targets"] == ["gateway:8000"]
    secret = SERVICES["prometheus"]["secrets"][0]["target"]
    assert gateway["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert httpx.URL(SERVICES["grafana"]["environment"]["PROMETHEUS_URL"]).host in SERVICES


def test_settings_that_the_documentation_names_exist() -> None:
    named = re.findall(
        r"`(server|engine|routing|images|admission|auth|streams|logging)\.(\w+)", _operations()
    )
    assert len(named) >= 15
    tree = Settings().model_dump()
    for section, key in named:
        assert key in tree[section], f"{section}.{key}"
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)[`=]", _operations())) <= (
        set(compose.variables())
        | {"COMPOSE_PROFILES", "PYTHON_IMAGE", "VLLM_IMAGE", "NCCL_SOCKET_IFNAME"}
        | _documented_for_vllm()
    )


def test_the_documentation_names_what_there_is() -> None:
    text = _operations()
    for profile in compose.PROFILES:
        assert f"| `{profile}` |" in text
    for overlay in kubernetes.OVERLAYS:
        assert overlay in text
    for target in dockerfile.TARGETS:
        assert f"`{target}`" in text
