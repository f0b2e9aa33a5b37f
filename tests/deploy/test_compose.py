"""The compose file, in every profile: resolvable, closed, and true to the programs it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy import compose
from tests.deploy.tools import run, tool
from vora_serve.gateway.settings import load_settings

ENGINES = (
    "engine-cpu",
    "engine-cpu-1",
    "engine-gpu-0",
    "engine-gpu-1",
    "engine-baseline",
    "engine-baseline-cpu",
)
ONCE = ("fetch-model", "loadtest")
EVERYTHING = compose.services(profiles=compose.PROFILES)


def test_these_are_all_profiles_and_environments() -> None:
    named = {p for service in EVERYTHING.values() for p in service.get("profiles", ())}
    assert named == set(compose.PROFILES)
    files = {path.stem for path in (compose.DEPLOY / "env").glob("*.env")}
    assert files == {name for name in compose.ENVIRONMENTS if name}


def fits_schema(path: Path) -> bool:
    """Whether a file is as the Compose specification's published schema has it."""
    checker = tool("check-jsonschema", "check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0


def test_fits_the_published_schema(tmp_path: Path) -> None:
    assert fits_schema(compose.COMPOSE)
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(compose.COMPOSE.read_text().replace("read_only: true", "read_onyl: true"))
    assert not fits_schema(wrong)


def test_the_check_of_what_resolves_sees_faults(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(compose.COMPOSE.read_text().replace("internal: true", "internal: ture"))
    command = [tool("docker-compose", "docker-compose"), "-f", str(wrong), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "internal" in done.stderr


@pytest.mark.parametrize("environment", compose.ENVIRONMENTS)
def test_resolves(environment: str | None, tmp_path: Path) -> None:
    command = [tool("docker-compose", "docker-compose")]
    if environment is not None:
        # A file of one's own beside it is read first, as the documentation has it.
        both = tmp_path / "both.env"
        both.write_text(
            (compose.DEPLOY / ".env.example").read_text()
            + (compose.DEPLOY / "env" / f"{environment}.env").read_text()
        )
        command += ["--env-file", str(both)]
    for profile in compose.PROFILES:
        command += ["--profile", profile]
    out = run([*command, "-f", str(compose.COMPOSE), "config", "--services"])
    assert set(out.split()) >= set(EVERYTHING)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (None, {"gateway", "engine-cpu"}),
        ("cpu-multi", {"gateway", "engine-cpu", "engine-cpu-1", "redis"}),
        ("gpu", {"gateway", "engine-gpu-0"}),
        ("gpu-multi", {"gateway", "engine-gpu-0", "engine-gpu-1", "redis"}),
    ],
)
def test_what_runs(environment: str | None, expected: set[str]) -> None:
    env = compose.env_of(environment)
    running = compose.services(env)
    assert set(running) == expected
    settings = load_settings(compose.gateway_settings(running["gateway"]))
    upstreams = {upstream.url for upstream in settings.upstreams}
    engines = {name for name in running if name in ENGINES}
    assert upstreams == {f"http://{name}:8001" for name in engines}
    storage = running["gateway"]["environment"]["VORA_SERVE_ADMISSION__RATE_LIMIT_STORAGE"]
    assert storage == ("redis://redis:6379/0" if "redis" in running else "memory://")


def test_baseline_gateway_names_its_engine() -> None:
    settings = load_settings(compose.gateway_settings(EVERYTHING["gateway-baseline"]))
    assert [upstream.url for upstream in settings.upstreams] == ["http://engine-baseline:8001"]


@pytest.mark.parametrize("name", ENGINES)
def test_engines_have_no_way_out_and_no_way_in(name: str) -> None:
    service = EVERYTHING[name]
    networks = compose.load()["networks"]
    assert list(service["networks"]) == ["engines"]
    assert networks["engines"]["internal"] is True
    assert "ports" not in service
    assert "secrets" not in service
    assert all(volume.endswith((":ro", ":/cache")) for volume in service["volumes"])


def test_the_twin_on_cpu_takes_the_name_of_the_other() -> None:
    networks = EVERYTHING["engine-baseline-cpu"]["networks"]
    assert networks["engines"]["aliases"] == ["engine-baseline"]
    both = {"baseline", "baseline-cpu"}
    assert set(EVERYTHING["gateway-baseline"]["profiles"]) == both
    assert {EVERYTHING[f"engine-{name}"]["profiles"][0] for name in both} == both


def test_the_load_test_reaches_gateways_and_engines_and_nothing_else() -> None:
    assert EVERYTHING["loadtest"]["networks"] == ["engines"]
    assert "ports" not in EVERYTHING["loadtest"]
    for name in ("gateway", "gateway-baseline"):
        assert "engines" in EVERYTHING[name]["networks"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_hardened(name: str) -> None:
    service = EVERYTHING[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in ("0", "root")
    assert not service.get("privileged")
    assert service["pids_limit"] > 0
    assert "memory" in service["deploy"]["resources"]["limits"]
    assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
    assert "healthcheck" in service


@pytest.mark.parametrize("name", EVERYTHING)
def test_ports_are_published_on_loopback_by_default(name: str) -> None:
    for port in EVERYTHING[name].get("ports", ()):
        assert port.startswith("127.0.0.1:")


def test_images_are_pinned_by_tag() -> None:
    for service in EVERYTHING.values():
        name, _, tag = service["image"].rpartition(":")
        assert name
        assert tag not in ("", "latest")


@pytest.mark.parametrize("name", [n for n in EVERYTHING if n.startswith("gateway")])
def test_gateways_get_the_time_to_drain(name: str) -> None:
    service = EVERYTHING[name]
    grace = int(service["stop_grace_period"].removesuffix("s"))
    for path in (compose.DEPLOY / "gateway").glob("*.yaml"):
        server = load_settings(path).server
        assert grace > server.drain_delay_s + server.grace_period_s + 10


@pytest.mark.parametrize("name", ENGINES)
def test_engines_get_the_time_to_finish(name: str) -> None:
    service = EVERYTHING[name]
    command = service["command"]
    wait = int(command[command.index("--shutdown-timeout") + 1])
    assert int(service["stop_grace_period"].removesuffix("s")) > wait
    for path in (compose.DEPLOY / "gateway").glob("*.yaml"):
        # When everything stops at once, engines last as long as the gateway's streams may.
        assert wait >= load_settings(path).server.grace_period_s


def test_every_variable_is_explained() -> None:
    used = compose.variables()
    assert all(len(defaults) == 1 for defaults in used.values())
    wanted = {name: next(iter(defaults)) for name, defaults in used.items()}
    # This one is compose's own.
    example = compose.read_env(compose.DEPLOY / ".env.example")
    assert example.pop("COMPOSE_PROFILES") == ""
    assert example == wanted
    for environment in compose.ENVIRONMENTS:
        assert set(compose.env_of(environment)) <= set(wanted) | {"COMPOSE_PROFILES"}


def test_what_is_mounted_exists() -> None:
    for service in EVERYTHING.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (compose.DEPLOY / source).exists(), source
    tree = compose.load()
    for secret in tree["secrets"].values():
        assert (compose.DEPLOY / secret["file"]).is_file()
    for service in EVERYTHING.values():
        for secret in service.get("secrets", ()):
            assert secret["source"] in tree["secrets"]
        assert set(service["networks"]) <= set(tree["networks"])
    named = {
        volume.split(":")[0]
        for service in EVERYTHING.values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    }
    assert named == set(tree["volumes"])


def test_no_secret_is_committed() -> None:
    kept = {"README.md", "none.yaml", "none.token", ".gitignore"}
    listed = run(["git", "ls-files", "deploy/secrets"]).split()
    assert {Path(path).name for path in listed} <= kept
    assert (compose.DEPLOY / "secrets" / "none.token").read_text() == ""


def test_open_gateways_are_published_on_loopback_alone() -> None:
    """Whoever is let in without a key must sit on this machine, unless told otherwise."""
    for path in (compose.DEPLOY / "gateway").glob("*.yaml"):
        auth = load_settings(path).auth
        assert auth.allow_anonymous != (auth.keys_file is not None)
        if auth.keys_file is not None:
            assert auth.keys_file.parent == Path("/run/secrets")
            assert auth.keys_file.name == EVERYTHING["gateway"]["secrets"][0]["target"]
            assert auth.protect_metrics
