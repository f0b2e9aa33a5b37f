"""Prometheus's configuration, rules and their unit tests, and what is generated from them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.deploy.compose import DEPLOY, ROOT
from tests.deploy.tools import run, tool
from vora_serve.gateway.metrics import Metrics

PROMETHEUS = DEPLOY / "prometheus"


def generator() -> ModuleType:
    """``deploy/generate.py``, which is a script and no package's."""
    spec = importlib.util.spec_from_file_location("vora_deploy_generate", DEPLOY / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rules() -> list[dict[str, object]]:
    """All rules of all files."""
    result: list[dict[str, object]] = []
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            result += group["rules"]
    return result


def test_configuration_and_rules_are_valid(tmp_path: Path) -> None:
    promtool = tool("promtool", "prometheus")
    out = run([promtool, "check", "rules", *map(str, (PROMETHEUS / "rules").glob("*.yml"))])
    assert out.count("SUCCESS") == 3
    # Its secret is a file, which only a container has.
    config = tmp_path / "prometheus.yml"
    token = tmp_path / "token"
    token.touch()
    text = (PROMETHEUS / "prometheus.yml").read_text()
    config.write_text(text.replace("/run/secrets/metrics_token", str(token)))
    (tmp_path / "rules").symlink_to(PROMETHEUS / "rules")
    assert "SUCCESS" in run([promtool, "check", "config", str(config)])


def test_rules_do_what_they_should() -> None:
    tests = sorted((PROMETHEUS / "tests").glob("*.yml"))
    run([tool("promtool", "prometheus"), "test", "rules", *map(str, tests)])


def test_every_alert_is_tested_and_has_a_paragraph() -> None:
    tested = "".join(path.read_text() for path in (PROMETHEUS / "tests").glob("*.yml"))
    text = (ROOT / "docs" / "operations.md").read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in headings}
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 12
    for rule in alerts:
        assert f"alertname: {rule['alert']}" in tested, rule["alert"]
        annotations = rule["annotations"]
        assert isinstance(annotations, dict)
        page, _, anchor = annotations["runbook"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in anchors, anchor
        labels = rule["labels"]
        assert isinstance(labels, dict)
        assert labels["severity"] in ("page", "ticket")


def test_the_objective_is_a_bucket() -> None:
    buckets = {
        sample.labels["le"]
        for family in _collect()
        for sample in family.samples
        if sample.name == "vora_gateway_time_to_first_token_seconds_bucket"
    }
    assert (
        set(re.findall(r'le="([^"]+)"', (PROMETHEUS / "rules" / "slo.yml").read_text())) <= buckets
    )


def _collect() -> list:  # type: ignore[type-arg]
    metrics = Metrics()
    metrics.first_token.labels("/v1/chat/completions").observe(1)
    return list(metrics.registry.collect())


def test_what_is_generated_is_up_to_date(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = generator()
    assert module.main(["--check"]) == 0
    assert module.main(["--chekc"]) == 2
    # And the check does see it.
    monkeypatch.setattr(module, "GATEWAY", module.GATEWAY[:-1])
    assert module.main(["--check"]) == 1
    assert "gateway.json is stale" in capsys.readouterr().err
