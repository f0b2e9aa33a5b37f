"""Kubernetes manifests: valid by its schemas, closed, and with time to drain."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy import kubernetes
from tests.deploy.kubernetes import OVERLAYS, Resource, containers, pick, workloads
from vora_serve.gateway.settings import load_settings

_BUILT: dict[str, list[Resource]] = {}
# Resources of the Prometheus operator, whose schemas are its own.
OPERATOR = "monitoring.coreos.com/v1"


def built(overlay: str) -> list[Resource]:
    if overlay not in _BUILT:
        _BUILT[overlay] = kubernetes.build(overlay)
    return _BUILT[overlay]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_valid(overlay: str) -> None:
    resources = built(overlay)
    assert len(resources) >= 10
    for resource in resources:
        assert resource["metadata"]["namespace"] == "vora"
        if resource["apiVersion"] != OPERATOR:
            kubernetes_validate.validate(resource, "1.33", strict=True)


@pytest.mark.parametrize("path", kubernetes.sources(), ids=lambda path: path.name)
def test_files_are_valid(path: Path) -> None:
    for resource in kubernetes.manifests(path):
        if resource["kind"] == "StatefulSet":
            continue  # its containers' arguments come with the overlays
        if resource["apiVersion"] != OPERATOR:
            kubernetes_validate.validate(resource, "1.33", strict=True)


def test_the_validator_sees_faults() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, "1.33", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_closed(overlay: str) -> None:
    seen = 0
    for resource in workloads(built(overlay)):
        spec = resource["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        # VORA_..._PORT variables made up for services would look like settings.
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(resource):
            seen += 1
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert "cpu" in container["resources"]["requests"]
            name, _, tag = container["image"].rpartition(":")
            assert name
            assert tag != "latest"
    assert seen >= 2


def config_of(overlay: str, resources: list[Resource], tmp_path: Path) -> Any:
    """The gateway's settings as its pod mounts them."""
    gateway = pick(resources, "Deployment", "vora-gateway")
    volumes = {v["name"]: v for v in gateway["spec"]["template"]["spec"]["volumes"]}
    name = volumes["config"]["configMap"]["name"]
    assert name != "vora-gateway-config", "without kustomize's hash a change restarts nothing"
    path = tmp_path / f"{overlay}.yaml"
    path.write_text(pick(resources, "ConfigMap", name)["data"]["gateway.yaml"])
    return load_settings(path)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_gateways(overlay: str, tmp_path: Path) -> None:
    resources = built(overlay)
    settings = config_of(overlay, resources, tmp_path)
    gateway = pick(resources, "Deployment", "vora-gateway")
    spec = gateway["spec"]["template"]["spec"]
    container = containers(gateway)[0]
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container["ports"][0]["containerPort"] == settings.server.port
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = settings.server.drain_delay_s + settings.server.grace_period_s
    assert spec["terminationGracePeriodSeconds"] >= wait + drain + 15
    probe = container["readinessProbe"]
    assert settings.server.drain_delay_s > probe["periodSeconds"] * probe["failureThreshold"]
    assert gateway["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    # Never open, and the keys come as a mounted secret.
    assert not settings.auth.allow_anonymous
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.auth.keys_file.parent) in mounts
    service = pick(resources, "Service", "vora-gateway")
    assert service["spec"]["selector"] == gateway["spec"]["template"]["metadata"]["labels"]
    pick(resources, "PodDisruptionBudget", "vora-gateway")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_engines(overlay: str, tmp_path: Path) -> None:
    resources = built(overlay)
    settings = config_of(overlay, resources, tmp_path)
    engine = pick(resources, "StatefulSet", "vora-engine")
    service = pick(resources, "Service", "vora-engine")
    assert engine["spec"]["serviceName"] == "vora-engine"
    assert service["spec"]["clusterIP"] == "None"
    arguments = containers(engine)[0]["args"]
    port = int(arguments[arguments.index("--port") + 1])
    assert port == containers(engine)[0]["ports"][0]["containerPort"]
    wait = int(arguments[arguments.index("--shutdown-timeout") + 1])
    assert wait >= settings.server.grace_period_s
    grace = engine["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= wait + 15
    most = engine["spec"].get("replicas", 0)
    if overlay == "multi-replica":
        assert "replicas" not in engine["spec"], "the autoscaler's number would be overwritten"
        scaler = pick(resources, "HorizontalPodAutoscaler", "vora-engine")
        most = scaler["spec"]["maxReplicas"]
        metrics = str(scaler["spec"]["metrics"])
        assert "vllm_num_requests_waiting" in metrics
        assert "vora_gateway_requests_queued" in metrics
    names = [f"http://vora-engine-{number}.vora-engine:{port}" for number in range(most)]
    assert [upstream.url for upstream in settings.upstreams] == names
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert containers(engine)[0][kind]["httpGet"]["path"] == "/health"


def _allows(policy: Resource, address: str, port: int) -> bool:
    """Whether a policy lets an address outside the cluster be reached."""
    for rule in policy["spec"]["egress"]:
        if port not in {entry["port"] for entry in rule.get("ports", ())}:
            continue
        for peer in rule.get("to", ()):
            block = peer.get("ipBlock")
            if block is None:
                continue
            ip = ipaddress.ip_address(address)
            inside = ip in ipaddress.ip_network(block["cidr"])
            if inside and not any(ip in ipaddress.ip_network(x) for x in block.get("except", ())):
                return True
    return False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_policies(overlay: str) -> None:
    resources = built(overlay)
    engine = pick(resources, "NetworkPolicy", "vora-engine")
    assert engine["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert engine["spec"].get("egress", []) == []
    gateway = pick(resources, "NetworkPolicy", "vora-gateway")
    assert _allows(gateway, "93.184.216.34", 443)
    assert _allows(gateway, "2606:2800:220:1::1", 443)
    for address in (
        "10.1.2.3",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "fd00::1",
        "fe80::1",
        "::1",
        "::ffff:10.0.0.1",
    ):
        assert not _allows(gateway, address, 443), address
    assert not _allows(gateway, "93.184.216.34", 22)
    labels = {str(r["spec"]["podSelector"]["matchLabels"]) for r in resources if _is_policy(r)}
    for resource in workloads(resources):
        assert str(resource["spec"]["template"]["metadata"]["labels"]) in labels


def _is_policy(resource: Resource) -> bool:
    return bool(resource["kind"] == "NetworkPolicy")


def test_several_gateways_share_their_limits(tmp_path: Path) -> None:
    resources = built("multi-replica")
    settings = config_of("multi-replica", resources, tmp_path)
    assert settings.admission.rate_limit_storage == "redis://vora-redis:6379/0"
    service = pick(resources, "Service", "vora-redis")
    assert service["spec"]["ports"][0]["port"] == 6379
    gateway = pick(resources, "NetworkPolicy", "vora-gateway")
    ports = {entry["port"] for rule in gateway["spec"]["egress"] for entry in rule["ports"]}
    assert 6379 in ports
    assert "replicas" not in pick(resources, "Deployment", "vora-gateway")["spec"]


@pytest.mark.parametrize("overlay", ["gpu", "multi-replica"])
def test_monitors_choose_services_and_ports_that_exist(overlay: str) -> None:
    resources = built(overlay)
    services = [r for r in resources if r["kind"] == "Service"]
    monitors = [r for r in resources if r["kind"] == "ServiceMonitor"]
    assert len(monitors) == 2
    for monitor in monitors:
        assert set(monitor["spec"]) == {"selector", "endpoints"}
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [s for s in services if wanted <= s["metadata"].get("labels", {}).items()]
        assert len(chosen) == 1
        for endpoint in monitor["spec"]["endpoints"]:
            assert set(endpoint) <= {"port", "path", "interval", "authorization", "relabelings"}
            assert endpoint["port"] in {p["name"] for p in chosen[0]["spec"]["ports"]}
            assert endpoint["path"] == "/metrics"
    rule = next(r for r in resources if r["kind"] == "PrometheusRule")
    path = kubernetes.KUBERNETES / "components" / "monitoring" / "prometheus-rule.yaml"
    assert rule["spec"] == yaml.safe_load(path.read_text())["spec"]
