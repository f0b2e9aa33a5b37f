"""Dashboards: queries that parse, over metrics that a live gateway and vLLM export."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy import compose, metrics
from tests.deploy.tools import run, tool
from tests.vora_serve.gateway.fake_engine import FakeEngine, ThreadServer, running
from vora_serve.gateway import create_app, load_settings


@pytest.fixture(scope="module")
def gateway_metrics() -> str:
    """What a live gateway exposes after a request."""
    with running(FakeEngine()) as engine:
        settings = load_settings(flags={"upstreams": [engine.url], "logging": {"access": False}})
        server = ThreadServer(create_app(settings))
        url = f"http://127.0.0.1:{server.start()}"
        try:
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                body = {"model": engine.model, "messages": [{"role": "user", "content": "hi"}]}
                assert client.post("/v1/chat/completions", json=body).status_code == 200
                return client.get("/metrics").text
        finally:
            server.stop()


def test_gateway_metrics_exist(gateway_metrics: str) -> None:
    wanted = {name for name in metrics.scraped() if name.startswith("vora_")}
    assert len(wanted) >= 20
    assert wanted - metrics.exposed(gateway_metrics) == set()


def test_labels_exist(gateway_metrics: str) -> None:
    """Label values that queries ask for are values that the gateway writes."""
    assert 'route="/v1/chat/completions"' in gateway_metrics
    labels = set(re.findall(r"[{,](\w+)=", gateway_metrics))
    queries = [q for board in metrics.dashboards().values() for q in board] + metrics.rules()[0]
    asked = set()
    for query in queries:
        if "vora_gateway" in query and "vllm:" not in query:
            asked |= set(re.findall(r"[{,]\s*(\w+)=", query))
            for group in re.findall(r"\bby \(([^)]*)\)", query):
                asked |= {name.strip() for name in group.split(",")}
    # instance and job are Prometheus's own; these appear once something is refused or left.
    assert asked - labels - {"instance", "job", "cause", "phase", "upstream", "outcome"} == set()


def test_engine_metrics_exist() -> None:
    """Against vLLM's source here; against a live engine in the test of the topology."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = "\n".join(
        path.read_text() for path in (Path(spec.origin).parent / "v1" / "metrics").glob("*.py")
    )
    defined = set(re.findall(r'"(vllm:\w+)"', source))
    wanted = {name for name in metrics.scraped() if name.startswith("vllm:")}
    assert len(wanted) >= 12
    assert metrics.families(wanted) - metrics.families(defined) == set()


def test_recorded_metrics_exist() -> None:
    queries, recorded = metrics.rules()
    boards = [query for board in metrics.dashboards().values() for query in board]
    for name in metrics.used([*queries, *boards]):
        if name.startswith("vora:"):
            assert name in recorded


def test_queries_parse(tmp_path: Path) -> None:
    """As rules, so that promtool reads them."""
    queries = [query for board in metrics.dashboards().values() for query in board]
    assert len(queries) >= 40
    parsed = [
        {"record": f"check:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "check", "rules": parsed}]}))
    assert "SUCCESS" in run([tool("promtool", "prometheus"), "check", "rules", str(path)])


def test_dashboards_are_provisioned() -> None:
    grafana = compose.DEPLOY / "grafana"
    service = compose.services(profiles=compose.PROFILES)["grafana"]
    mounts = dict(v.removesuffix(":ro").split(":")[::-1] for v in service["volumes"])
    provider = yaml.safe_load((grafana / "provisioning" / "dashboards" / "vora.yaml").read_text())
    source = yaml.safe_load(
        (grafana / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    )["datasources"][0]
    folder = provider["providers"][0]["options"]["path"]
    assert mounts[folder] == "./grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "./grafana/provisioning"
    home = Path(service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == folder
    assert (grafana / "dashboards" / home.name).is_file()
    assert source["url"].removeprefix("$") in service["environment"]
    for path in (grafana / "dashboards").glob("*.json"):
        board = json.loads(path.read_text())
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(set(numbers)) == len(numbers)
        spots = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(spots)) == len(spots)
        for panel in board["panels"]:
            assert panel["datasource"]["uid"] == source["uid"]
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
