"""The compose file's other profiles in real containers: ``make test-containers``.

Two engines behind a gateway that shares limits through Redis, watched by Prometheus; an upgrade
from earlier sources' images to these under load; the load test, the encoder-based model on CPU,
and the training image at work.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy import compose
from tests.deploy.conftest import TAG, Images
from tests.deploy.containment import faults
from tests.deploy.daemon import Daemon
from tests.deploy.load import Load
from tests.deploy.stack import LIMIT_S, Stack
from tests.deploy.topology import free_port, wait_for

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3000)]

ENGINES = ("engine-cpu", "engine-cpu-1")
BEFORE = "before"
SENT = "vora_gateway_upstream_requests_total"
IN_FLIGHT = "vora_gateway_upstream_requests_in_flight"
TALK: dict[str, Any] = {
    "model": "vora-demo",
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 96,
    "ignore_eos": True,
    "stream": True,
}
#: Engines that spin for each other's cores would only wait.
SMALL = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def git(*arguments: str) -> bytes:
    """What git prints, in this checkout."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=compose.ROOT, capture_output=True, check=True).stdout


def earlier() -> str:
    """The last release before this commit; without any, a commit some way back."""
    tags = git("tag", "--merged", "HEAD~1", "--sort=-creatordate", "v*").decode().split()
    if tags:
        return tags[0]
    count = int(git("rev-list", "--count", "--first-parent", "HEAD"))
    return f"HEAD~{min(10, count - 1)}"


@pytest.fixture(scope="module")
def before(images: Images, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tag: gateway and engine of earlier sources, built with this Dockerfile."""
    context = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=BytesIO(git("archive", earlier()))) as archive:
        archive.extractall(context, filter="data")
    subprocess.run(["rm", "-r", str(context / "docker")], check=True)
    subprocess.run(["cp", "-r", str(compose.ROOT / "docker"), str(context)], check=True)
    for target in ("gateway", "engine-cpu"):
        images.build(target, BEFORE, context)
    return BEFORE


@pytest.fixture(scope="module")
def fleet(
    daemon: Daemon,
    images: Images,
    servers: dict[str, str],
    before: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """Two engines, gateway, Redis and Prometheus, on the earlier sources' images."""
    daemon.cgroup.bound(12 * 2**30)
    for target in ("gateway", "engine-cpu"):
        images.build(target)
    running = Stack(
        daemon,
        tmp_path_factory.mktemp("fleet"),
        "fleet",
        environment="cpu-multi",
        override={"services": {name: {"environment": SMALL} for name in ENGINES}},
        variables={**servers, "PROMETHEUS_PORT": str(free_port()), "TAG": before},
    )
    try:
        running.up("redis", "prometheus", *ENGINES, "gateway")
        try:
            wait_for("both engines", lambda: up(running) == 2, LIMIT_S)
        except TimeoutError as error:
            seen = running.metric("vora_gateway_upstream_up")
            raise AssertionError(f"{error}: {seen}\n{running.logs('gateway')[-3000:]}") from None
        yield running
    finally:
        running.down()


def up(stack: Stack) -> int:
    """Engines that the gateway can use."""
    return sum(value == 1.0 for value in stack.metric("vora_gateway_upstream_up").values())


def query(stack: Stack, expression: str) -> list[dict[str, Any]]:
    """What Prometheus answers."""
    url = f"http://127.0.0.1:{stack.variables['PROMETHEUS_PORT']}/api/v1/query"
    answer = httpx.get(url, params={"query": expression}, timeout=30, trust_env=False).json()
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


@pytest.mark.parametrize("service", [*ENGINES, "redis"])
def test_services_are_contained(fleet: Stack, service: str) -> None:
    if service == "redis":  # without Python to look from within
        host = fleet.daemon.inspect(fleet.container("redis"))["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert fleet.execute("redis", "touch", "/etc/x").code != 0
        assert fleet.execute("redis", "touch", "/data/x").code == 0
    else:
        assert faults(fleet, service) == []


def test_limits_are_counted_in_redis(fleet: Stack) -> None:
    def scripts() -> int:
        """Limits are Lua scripts; their keys may be gone before anybody can look at them."""
        statistics = fleet.execute("redis", "redis-cli", "info", "commandstats").out
        return sum(map(int, re.findall(r"cmdstat_eval(?:sha)?:calls=(\d+)", statistics)))

    before = scripts()
    assert fleet.post({**TALK, "stream": False}).status_code == 200
    assert scripts() > before


def test_prometheus_reads_everything(fleet: Stack) -> None:
    """Names of services resolve to targets, and every rule loads."""
    jobs = 'up{job=~"vora-gateway|vora-engine"} == 1'
    wait_for("three targets", lambda: len(query(fleet, jobs)) == 3, 120)
    url = f"http://127.0.0.1:{fleet.variables['PROMETHEUS_PORT']}/api/v1/rules"
    groups = httpx.get(url, timeout=30, trust_env=False).json()["data"]["groups"]
    health = [rule["health"] for group in groups for rule in group["rules"]]
    assert len(health) >= 35
    assert set(health) <= {"ok", "unknown"}


def set_drain(stack: Stack, engine: str, drain: bool) -> None:
    """What the runbook says: change the settings, reload."""
    path = stack.deploy / "gateway" / "cpu-multi.yaml"
    tree = yaml.safe_load(path.read_text())
    for upstream in tree["upstreams"]:
        if upstream["url"] == f"http://{engine}:8001":
            upstream["drain"] = drain
    path.write_text(yaml.safe_dump(tree))
    stack.reload()


@pytest.mark.parametrize(
    ("name", "announced"), [("engine-cpu", True), ("engine-cpu-1", False)], ids=["drained", "told"]
)
def test_an_engine_is_upgraded_under_load(fleet: Stack, name: str, announced: bool) -> None:
    """Drained first, as the runbook has it, or simply replaced: no stream is cut."""
    url = f"http://{name}:8001"
    wait_for("both engines", lambda: up(fleet) == 2, LIMIT_S)
    with Load(fleet.url, TALK, callers=4) as load:
        load.wait_finished(4)
        if announced:
            set_drain(fleet, name, True)
            wait_for("its last request", lambda: fleet.metric(IN_FLIGHT)[url] == 0, LIMIT_S)
        else:
            wait_for("requests there", lambda: fleet.metric(IN_FLIGHT)[url] > 0, LIMIT_S)
        sent = fleet.metric(SENT)[url]
        fleet.variables["TAG"] = TAG
        fleet.compose("up", "--detach", "--no-build", "--no-deps", name)
        load.wait_finished(4)  # by the other one
        fleet.wait_healthy(name)
        if announced:
            set_drain(fleet, name, False)
        wait_for("work for the new engine", lambda: fleet.metric(SENT)[url] > sent, LIMIT_S)
    fleet.variables["TAG"] = BEFORE
    assert load.tally.cut == []
    assert load.tally.refused == 0
    image = fleet.daemon.inspect(fleet.container(name))["Config"]["Image"]
    assert image == f"vora-serve-engine-cpu:{TAG}"


def test_the_gateway_is_upgraded_under_load(fleet: Stack) -> None:
    """Connections are refused for a moment, and no stream is cut."""
    with Load(fleet.url, TALK, callers=4) as load:
        load.wait_finished(4)
        fleet.variables["TAG"] = TAG
        fleet.compose("up", "--detach", "--no-build", "--no-deps", "gateway")
        fleet.wait_healthy("gateway")
        load.wait_finished(8)
    assert load.tally.cut == []
    image = fleet.daemon.inspect(fleet.container("gateway"))["Config"]["Image"]
    assert image == f"vora-serve-gateway:{TAG}"


#: The smallest run that asks through the gateway and at an engine.
RUN = """
name: small
servers:
  - {name: direct, kind: url, url: "http://{ENGINE}:8001", model: "{MODEL}"}
  - {name: gateway, kind: url, url: http://gateway:8000, model: "{MODEL}"}
compare: [[gateway, direct]]
workloads:
  - name: single-image
    concurrency: [1]
    requests: 2
    output_tokens: 4
    images: {sizes: [[84, 84]]}
repeats: 2
"""


def test_the_load_test_runs_in_its_container(fleet: Stack, images: Images, record: Any) -> None:
    name = images.build("loadtest")
    record(f"{name}: {images.size(name) / 1e6:.0f} MB over its base")
    (fleet.deploy / "loadtest" / "small.yaml").write_text(RUN)
    fleet.variables |= {"LOADTEST_FILE": "small.yaml", "LOADTEST_RUN": "small"}
    fleet.compose("run", "--rm", "loadtest")
    read = ("run", "--rm", "--entrypoint", "cat", "loadtest", "/runs/small/report.html")
    assert "<html" in fleet.compose(*read)


def test_the_encoder_based_model_answers(fleet: Stack, images: Images) -> None:
    """Profile ``baseline-cpu``: a checkpoint built into the volume, stock vLLM, its own gateway."""
    images.build("loadtest")
    port = free_port()
    fleet.variables["BASELINE_PORT"] = str(port)
    fleet.compose("stop", *ENGINES)  # two processors
    fleet.compose("run", "--rm", "loadtest", "baseline", "build", "/models/baseline")
    fleet.up("engine-baseline-cpu", "gateway-baseline")
    assert faults(fleet, "engine-baseline-cpu") == []
    body = {**TALK, "model": "baseline", "max_tokens": 4, "stream": False}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    answer = httpx.post(url, json=body, timeout=LIMIT_S, trust_env=False)
    assert answer.status_code == 200, answer.text


def test_the_training_image_merges(images: Images, daemon: Daemon, record: Any) -> None:
    """A real step of the pipeline, read-only but for its folders."""
    name = images.build("training")
    record(f"{name}: {images.size(name) / 1e6:.0f} MB over its base")
    fixture = compose.ROOT / "tests" / "fixtures" / "released_vora_tiny" / "pretrain"
    out = daemon.docker(
        *("run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL"),
        *("--tmpfs", "/tmp", "--tmpfs", "/cache:uid=65532,gid=65532"),
        *("--volume", f"{fixture}:/models/source:ro"),
        *(name, "merge", "source=/models/source", "out=/cache/merged"),
    )
    assert "/cache/merged" in out


def test_it_all_stops(fleet: Stack) -> None:
    """Last: everything ends by itself, within its grace."""
    fleet.compose("stop")
    for service in ("gateway", *ENGINES):
        assert fleet.state(service)["ExitCode"] == 0, service


def test_earlier_sources_are_other_sources() -> None:
    assert git("rev-parse", earlier()) != git("rev-parse", "HEAD")
    assert Path(compose.ROOT, "docker", "Dockerfile").is_file()
