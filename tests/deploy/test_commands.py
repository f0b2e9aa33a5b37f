"""Every command, flag, path, port and variable in the deployment files is one that is accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml

from tests.deploy import compose, dockerfile, kubernetes
from tests.deploy.tools import ask_vllm, run, tool
from vora_serve.cli import app
from vora_serve.engine.launch import safe_flags
from vora_serve.gateway import create_app
from vora_serve.gateway.settings import Settings, load_settings

SERVICES = compose.services(profiles=compose.PROFILES)


def own_commands() -> Iterator[tuple[str, list[str]]]:
    """Everything that runs ``vora-serve``: where it stands, and its arguments."""
    for environment in compose.ENVIRONMENTS:
        for name, service in compose.services(compose.env_of(environment)).items():
            if "vora-serve" in service["image"] and "entrypoint" not in service:
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


def engine_flags(arguments: list[str]) -> list[str]:
    """What vLLM gets to see of an engine's arguments."""
    context = parse(arguments)
    assert context.params["host"] == "0.0.0.0"
    assert context.params["port"] == 8001
    result = ["--model", context.params["model"], *context.args]
    for flag, values in safe_flags(16).items():
        if flag not in context.args:
            result += [flag, *values]
    return result


def test_engines() -> None:
    engines = [arguments for arguments in COMMANDS.values() if arguments[0] == "engine"]
    assert len(engines) >= 6
    flags = [engine_flags(arguments) for arguments in engines]
    # The published image starts vLLM itself: 'vllm serve' and what follows.
    flags.append(SERVICES["engine-baseline"]["command"])
    # The documentation's examples too.
    documented = re.findall(r"^vora-serve (engine [^\n]*)$", _operations(), re.MULTILINE)
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
    # What does not exist must be refused, or the check would say nothing.
    wrong = ["--model", "m", "--shutdown-timeuot", "3"]
    faults, unknown = ask_vllm([*flags, wrong], [*sorted(names), "VLLM_CPU_KVCACHE"])
    assert [arguments for arguments, _ in faults] == [wrong], faults
    assert unknown == ["VLLM_CPU_KVCACHE"]


def engine_flags_documented(arguments: list[str]) -> list[str]:
    context = parse(arguments)
    return ["--model", context.params["model"], *context.args]


def test_the_check_refuses_what_does_not_exist() -> None:
    with pytest.raises(Exception, match="No such option: --confg"):
        parse(["serve", "--confg", "x"])


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


def test_prometheus_scrapes_services_that_exist() -> None:
    tree: dict[str, Any] = yaml.safe_load(
        (compose.DEPLOY / "prometheus" / "prometheus.yml").read_text()
    )
    engines: set[str] = set()
    for job in tree["scrape_configs"]:
        for dns in job.get("dns_sd_configs", ()):
            assert dns["port"] == 8001
            engines |= set(dns["names"])
    assert engines == {name for name in SERVICES if name.startswith("engine")}
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
        set(compose.variables()) | {"COMPOSE_PROFILES", "PYTHON_IMAGE", "VLLM_IMAGE"}
    )


def test_the_documentation_names_what_there_is() -> None:
    text = _operations()
    for profile in compose.PROFILES:
        assert f"| `{profile}` |" in text
    for overlay in kubernetes.OVERLAYS:
        assert overlay in text
    for target in dockerfile.TARGETS:
        assert f"`{target}`" in text
