"""The whole topology for real, without containers: ``make test-deploy``.

Gateway, two CPU engines, Redis and Prometheus, by the compose file's own commands. Engines sit in
a network namespace with no way out where this machine has such.
"""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy import compose, metrics
from tests.deploy.container import HOME
from tests.deploy.load import Load
from tests.deploy.tools import tool
from tests.deploy.topology import Topology, wait_for
from vora_serve.gateway import load_settings

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1500)]

FIXTURES = compose.ROOT / "tests" / "fixtures" / "released_vora_tiny"
DEMO = compose.ROOT / "vora_serve" / "demo" / "checkpoint"
IMAGE = (FIXTURES / "a.png").read_bytes()
ENGINES = ("engine-cpu", "engine-cpu-1")
#: Seconds after which something hangs rather than takes its time.
LIMIT = 180
SENT = "vora_gateway_upstream_requests_total"
IN_FLIGHT = "vora_gateway_upstream_requests_in_flight"
TALK: dict[str, Any] = {
    "model": "vora-demo",
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 24,
    "ignore_eos": True,
    "stream": True,
}
#: Long enough to be under way when something is stopped.
LONG: dict[str, Any] = {**TALK, "max_tokens": 96}


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """Everything, running."""
    for name, package in (("prometheus", "prometheus"), ("redis-server", "redis-server")):
        tool(name, package)
    # A machine of two cores: engines that spin for each other's cores would only wait.
    small = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    running = Topology(
        "cpu-multi",
        ("observability",),
        DEMO if (DEMO / "config.json").is_file() else FIXTURES / "merged",
        tmp_path_factory.mktemp("topology"),
        {
            "gateway": {
                "VORA_SERVE_IMAGES__ALLOW_NETWORKS": '["127.0.0.0/8"]',
                "VORA_SERVE_SERVER__GRACE_PERIOD_S": "600",
            },
            **dict.fromkeys(ENGINES, small),
        },
    )
    try:
        running.start()
        wait_for("both engines at the gateway", lambda: up(running) == [1.0, 1.0], LIMIT)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def client(topology: Topology) -> Iterator[httpx.Client]:
    url = topology.services["gateway"].url
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        yield client


def gauges(topology: Topology, name: str) -> dict[str, float]:
    """The gateway's samples of a metric, by the engine they are of."""
    text = httpx.get(
        topology.services["gateway"].url + "/metrics", timeout=60, trust_env=False
    ).text
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = re.match(rf'{name}{{.*\bupstream="([^"]+)".*}} (\S+)$', line)
        if match is not None:
            found[match[1]] = found.get(match[1], 0) + float(match[2])
    return found


def up(topology: Topology) -> list[float]:
    return sorted(gauges(topology, "vora_gateway_upstream_up").values())


def show(url: str, text: str = "What is it?") -> dict[str, Any]:
    """A request with an image."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    message = {"role": "user", "content": parts}
    return {"model": "vora-demo", "messages": [message], "max_tokens": 8, "temperature": 0}


def query(topology: Topology, expression: str) -> list[dict[str, Any]]:
    """What Prometheus answers now."""
    url = topology.services["prometheus"].url + "/api/v1/query"
    answer = httpx.get(url, params={"query": expression}, timeout=30, trust_env=False).json()
    assert answer["status"] == "success", answer
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def test_traffic_flows_to_both_engines(topology: Topology, client: httpx.Client) -> None:
    data = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    for number in range(6):
        answer = client.post("/v1/chat/completions", json=show(data, f"What is it? {number}"))
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["prompt_tokens"] > 16
    with Load(topology.services["gateway"].url, TALK, callers=4) as load:
        load.wait_finished(16)
    assert load.tally.cut == []
    served = gauges(topology, SENT)
    assert set(served) == {topology.services[name].url for name in ENGINES}
    assert all(count > 0 for count in served.values())


class _Images(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("content-type", "image/png")
        self.send_header("content-length", str(len(IMAGE)))
        self.end_headers()
        self.wfile.write(IMAGE)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def web() -> Iterator[str]:
    """An image's URL on this machine's loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Images) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/image.png"
        server.shutdown()
        thread.join()


def test_engines_have_no_way_out_and_images_work(
    topology: Topology, client: httpx.Client, web: str
) -> None:
    if topology.namespace is None:
        pytest.skip("no network namespaces can be made here")
    for name in ENGINES:
        process = topology.services[name].process
        assert process is not None
        engine = os.stat(f"/proc/{process.pid}/ns/net").st_ino
        assert engine != os.stat("/proc/self/ns/net").st_ino
    # Asking the routing table sends nothing; 192.0.2.1 is an address for documentation.
    for address in ("192.0.2.1", "2001:db8::1"):
        command = topology.namespace.inside(["ip", "route", "get", address])
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode != 0
        assert "unreachable" in done.stderr.lower()
    fetch = f"import urllib.request; urllib.request.urlopen({web!r}, timeout=3)"
    command = topology.namespace.inside([sys.executable, "-I", "-c", fetch])
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode != 0
    assert "refused" in done.stderr
    assert _Images.asked == 0
    answer = client.post("/v1/chat/completions", json=show(web))
    assert answer.status_code == 200, answer.text
    assert _Images.asked == 1
    data = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    same = client.post("/v1/chat/completions", json=show(data))
    assert same.json()["usage"]["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]


def test_services_are_contained(topology: Topology) -> None:
    """They run without rights and over a read-only root, as the compose file says."""
    if not topology.contained:
        pytest.skip("processes cannot be contained here")
    for name, service in topology.services.items():
        assert service.process is not None
        pid = service.process.pid
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        user = {"prometheus": 65534, "redis": 999}.get(name, 65532)
        assert set(map(int, status["Uid"].split())) == {user}
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        options = {mount[1]: mount[3].split(",") for mount in mounts}
        assert "ro" in options["/"]
        assert "rw" in options["/dev/shm"]
        if name == "gateway":
            assert "size=65536k" in options["/tmp"]
        if name in ENGINES:
            assert "size=262144k" in options[HOME]


def test_limits_are_counted_in_redis(topology: Topology, client: httpx.Client) -> None:
    assert client.post("/v1/chat/completions", json={**TALK, "stream": False}).status_code == 200
    redis = topology.services["redis"]
    command = [tool("redis-cli", "redis-tools"), "-h", redis.host, "-p", str(redis.port), "keys"]
    done = subprocess.run([*command, "*"], capture_output=True, text=True, check=True, timeout=30)
    assert "requests" in done.stdout


def test_live_metrics_are_those_that_are_asked_for(topology: Topology) -> None:
    """Every metric in dashboards and rules stands in a live exposition."""
    exposed: set[str] = set()
    for name in ("gateway", *ENGINES):
        text = httpx.get(topology.services[name].url + "/metrics", timeout=30, trust_env=False).text
        exposed |= metrics.exposed(text)
    wanted = metrics.scraped()
    assert len(wanted) >= 35
    assert wanted - exposed == set()


#: Silent unless something goes wrong, or unless there is more to divide than this test asks.
QUIET = {
    "Refused, by cause",
    "Clients that left early",
    "Refused images",
    "Engines: cache of processed images, hits",
    "Image tokens among the prompt's",
}


def test_dashboards_show_data(topology: Topology, client: httpx.Client) -> None:
    data = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    with Load(topology.services["gateway"].url, TALK, callers=2) as load:
        load.wait_finished(4)
        for number in range(3):
            client.post("/v1/chat/completions", json=show(data, f"Again {number}"))
        wait_for(
            "scrapes of all three",
            lambda: len(query(topology, 'up{job=~"vora-gateway|vora-engine"} == 1')) == 3,
            LIMIT,
        )
        load.wait_finished(8)
        wait_for("recorded rates", lambda: bool(query(topology, "vora:requests:rate5m")), LIMIT)
        empty: list[str] = []
        for board, panels in boards().items():
            for panel in panels:
                for target in panel["targets"]:
                    expression = target["expr"].replace("$__rate_interval", "1m")
                    if not query(topology, expression) and panel["title"] not in QUIET:
                        empty.append(f"{board}: {panel['title']}: {expression}")
    assert empty == []
    rules = httpx.get(
        topology.services["prometheus"].url + "/api/v1/rules", timeout=30, trust_env=False
    ).json()
    health = [rule["health"] for group in rules["data"]["groups"] for rule in group["rules"]]
    assert len(health) >= 35
    assert set(health) <= {"ok", "unknown"}


def boards() -> dict[str, list[dict[str, Any]]]:
    return {
        path.stem: json.loads(path.read_text())["panels"]
        for path in (compose.DEPLOY / "grafana" / "dashboards").glob("*.json")
    }


def set_drain(topology: Topology, url: str, drain: bool) -> None:
    """What the runbook says: change the settings, check them, reload."""
    path = topology.gateway_config()
    tree = yaml.safe_load(path.read_text())
    for upstream in tree["upstreams"]:
        if upstream["url"] == url:
            upstream["drain"] = drain
    path.write_text(yaml.safe_dump(tree))
    load_settings(path)  # as 'vora-serve config check' does
    topology.services["gateway"].signal(signal.SIGHUP)


@pytest.mark.parametrize(
    ("name", "announced"), [("engine-cpu", True), ("engine-cpu-1", False)], ids=["drained", "told"]
)
def test_rolling_restart_of_engines_drops_no_stream(
    topology: Topology, name: str, announced: bool
) -> None:
    """One engine after the other: drained first, as the runbook has it for Compose, or simply told
    to stop, as a StatefulSet's rolling update and its autoscaler do."""
    service = topology.services[name]
    with Load(topology.services["gateway"].url, LONG, callers=4) as load:
        load.wait_finished(4)
        starts = service.starts
        if announced:
            set_drain(topology, service.url, True)
            wait_for(
                "the drained engine's last request",
                lambda: gauges(topology, IN_FLIGHT)[service.url] == 0,
                LIMIT,
            )
        else:
            wait_for(
                "requests at the engine",
                lambda: gauges(topology, IN_FLIGHT)[service.url] > 0,
                LIMIT,
            )
        assert topology.down(name) == 0
        before = gauges(topology, SENT)[service.url]
        load.wait_finished(4)  # by the other one
        topology.up(name)
        assert service.starts == starts + 1
        topology.wait_healthy(name)
        if announced:
            set_drain(topology, service.url, False)
        wait_for("both engines", lambda: up(topology) == [1.0, 1.0], LIMIT)
        wait_for(
            "work for the new engine", lambda: gauges(topology, SENT)[service.url] > before, LIMIT
        )
    assert load.tally.cut == []
    assert load.tally.refused == 0
    assert load.tally.finished > 8


def test_restart_of_the_gateway_drops_no_stream(topology: Topology) -> None:
    with Load(topology.services["gateway"].url, LONG, callers=4) as load:
        load.wait_finished(4)
        assert topology.down("gateway") == 0
        topology.up("gateway")
        topology.wait_healthy("gateway", LIMIT)
        load.wait_finished(8)
    assert load.tally.cut == []


def test_a_killed_engine_comes_back(topology: Topology, client: httpx.Client) -> None:
    wait_for("both engines", lambda: up(topology) == [1.0, 1.0], LIMIT)
    engine = topology.services["engine-cpu-1"]
    starts = engine.starts
    topology.kill("engine-cpu-1")
    wait_for("the gateway's notice", lambda: up(topology) == [0.0, 1.0], LIMIT)
    for _ in range(4):
        answer = client.post("/v1/chat/completions", json={**TALK, "stream": False})
        assert answer.status_code == 200, answer.text
    wait_for(
        "Prometheus's notice",
        lambda: bool(query(topology, "vora_gateway_upstream_up == 0")),
        LIMIT,
    )
    topology.wait_healthy("engine-cpu-1")
    assert engine.starts == starts + 1
    wait_for("both engines", lambda: up(topology) == [1.0, 1.0], LIMIT)


def test_everything_stops_when_told(topology: Topology) -> None:
    """Last: after SIGTERM nothing is left, neither processes nor sockets."""
    for name in ("gateway", *ENGINES):
        service = topology.services[name]
        assert topology.down(name) == 0
        assert service.left == []
        with pytest.raises(httpx.HTTPError):
            httpx.get(service.url + "/health", timeout=5, trust_env=False)
