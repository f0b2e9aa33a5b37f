"""Write what is made from something else: Grafana's dashboards and the cluster's PrometheusRule.

python deploy/generate.py            write
python deploy/generate.py --check    exit with 1 if something is not as it would be written
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One panel: title, unit, and queries as (legend, PromQL)."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    about: str = ""
    stacked: bool = False
    thresholds: Sequence[tuple[float | None, str]] = field(default_factory=tuple)


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 20 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    if panel.thresholds:
        steps = [{"value": value, "color": colour} for value, colour in panel.thresholds]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return defaults


def _panel(panel: Panel, number: int, x: int, y: int, height: int) -> dict[str, Any]:
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}}
    if panel.kind == "stat":
        options = {"colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
            }
            for index, (legend, query) in enumerate(panel.queries)
        ],
    }


def dashboard(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """A dashboard's model: panels from left to right, rows from the top."""
    placed = []
    x = y = row = 0
    for number, panel in enumerate(panels, 1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > 24:
            x, y, row = 0, y + row, 0
        placed.append(_panel(panel, number, x, y, height))
        x, row = x + panel.width, max(row, height)
    return {
        "uid": uid,
        "title": title,
        "tags": ["vora"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": placed,
    }


def _quantiles(metric: str, by: str = "") -> list[tuple[str, str]]:
    group = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return [
        (
            f"{legend}p{quantile:g}",
            f"histogram_quantile({quantile / 100:g}, "
            f"sum by ({group}) (rate({metric}_bucket[{RATE}])))",
        )
        for quantile in (50, 95, 99)
    ]


def _mean(metric: str) -> str:
    return f"sum(rate({metric}_sum[{RATE}])) / sum(rate({metric}_count[{RATE}]))"


_BUDGET: Sequence[tuple[float | None, str]] = ((None, "green"), (1, "orange"), (6, "red"))
_API = 'route=~"/v1/.*"'

GATEWAY = (
    Panel(
        "Engines up",
        [("", "sum(max by (upstream) (vora_gateway_upstream_up))")],
        kind="stat",
        width=4,
        thresholds=((None, "red"), (1, "green")),
    ),
    Panel("In flight", [("", "sum(vora_gateway_requests_in_flight)")], kind="stat", width=4),
    Panel(
        "Waiting for a place",
        [("", "sum(vora_gateway_requests_queued)")],
        kind="stat",
        width=4,
        thresholds=((None, "green"), (1, "orange"), (100, "red")),
    ),
    Panel(
        "First-token budget, burn over 1 h",
        [("", "vora:slo_first_token:error_ratio_1h / 0.01")],
        kind="stat",
        width=6,
        about="1: the error budget lasts exactly its 30 days. Alerts at 14.4.",
        thresholds=_BUDGET,
    ),
    Panel(
        "Availability budget, burn over 1 h",
        [("", "vora:slo_availability:error_ratio_1h / 0.001")],
        kind="stat",
        width=6,
        about="1: the error budget lasts exactly its 30 days. Alerts at 14.4.",
        thresholds=_BUDGET,
    ),
    Panel(
        "Requests by status",
        [("{{status}}", f"sum by (status) (rate(vora_gateway_requests_total{{{_API}}}[{RATE}]))")],
        unit="reqps",
        stacked=True,
        about="499: the client left before there was an answer.",
    ),
    Panel(
        "Requests by key",
        [("{{key}}", f"sum by (key) (rate(vora_gateway_requests_total{{{_API}}}[{RATE}]))")],
        unit="reqps",
        stacked=True,
    ),
    Panel(
        "Time to first token",
        _quantiles("vora_gateway_time_to_first_token_seconds"),
        unit="s",
        about="Of streamed answers. The objective: 99 % within 2.5 s.",
    ),
    Panel("Between tokens", _quantiles("vora_gateway_inter_token_seconds"), unit="s"),
    Panel(
        "Whole request",
        _quantiles("vora_gateway_request_duration_seconds", "route"),
        unit="s",
    ),
    Panel(
        "The gateway's own share",
        _quantiles("vora_gateway_overhead_seconds"),
        unit="s",
        about="From the first byte to the answer's head, less waiting for a place and the engine.",
    ),
    Panel("Waiting for a place", _quantiles("vora_gateway_queue_duration_seconds"), unit="s"),
    Panel(
        "Refused, by cause",
        [("{{cause}}", f"sum by (cause) (rate(vora_gateway_refused_total[{RATE}]))")],
        unit="reqps",
        stacked=True,
    ),
    Panel(
        "Tokens",
        [("{{kind}}", f"sum by (kind) (rate(vora_gateway_tokens_total[{RATE}]))")],
        about="cached and image tokens are part of the prompt's.",
    ),
    Panel(
        "Clients that left early",
        [("{{phase}}", f"sum by (phase) (rate(vora_gateway_client_disconnects_total[{RATE}]))")],
        unit="reqps",
    ),
    Panel(
        "Engines: in flight",
        [("{{upstream}}", "sum by (upstream) (vora_gateway_upstream_requests_in_flight)")],
    ),
    Panel(
        "Engines: outcomes",
        [
            (
                "{{upstream}} {{outcome}}",
                f"sum by (upstream, outcome) (rate(vora_gateway_upstream_requests_total[{RATE}]))",
            )
        ],
        unit="reqps",
    ),
    Panel(
        "Engines: up, and open breakers",
        [
            ("{{upstream}} up", "max by (upstream) (vora_gateway_upstream_up)"),
            (
                "{{upstream}} breaker open",
                "max by (upstream) (vora_gateway_upstream_breaker_open)",
            ),
        ],
    ),
)

IMAGES = (
    Panel("Images", [("", f"sum(rate(vora_gateway_images_total[{RATE}]))")], unit="ops"),
    Panel("Bytes received", [("", f"sum(rate(vora_gateway_image_bytes_total[{RATE}]))")], "Bps"),
    Panel(
        "Mean size of an image",
        [
            (
                "pixels",
                f"sum(rate(vora_gateway_image_pixels_total[{RATE}])) "
                f"/ sum(rate(vora_gateway_images_total[{RATE}]))",
            )
        ],
    ),
    Panel(
        "Image tokens among the prompt's",
        [
            (
                "share",
                f'sum(rate(vora_gateway_tokens_total{{kind="image"}}[{RATE}])) '
                f'/ sum(rate(vora_gateway_tokens_total{{kind="prompt"}}[{RATE}]))',
            )
        ],
        unit="percentunit",
    ),
    Panel(
        "Fetching a request's images",
        _quantiles("vora_gateway_image_fetch_duration_seconds"),
        unit="s",
    ),
    Panel(
        "Checking and decoding them",
        _quantiles("vora_gateway_image_decode_duration_seconds"),
        unit="s",
    ),
    Panel(
        "Refused images",
        [
            (
                "{{cause}}",
                f'sum by (cause) (rate(vora_gateway_refused_total{{cause=~".*image.*"}}[{RATE}]))',
            )
        ],
        unit="reqps",
    ),
    Panel(
        "Engines: cache of processed images, hits",
        [
            (
                "{{instance}}",
                f"sum by (instance) (rate(vllm:mm_cache_hits_total[{RATE}])) "
                f"/ sum by (instance) (rate(vllm:mm_cache_queries_total[{RATE}]))",
            )
        ],
        unit="percentunit",
    ),
)

ENGINE = (
    Panel(
        "Running and waiting",
        [
            ("{{instance}} running", "sum by (instance) (vllm:num_requests_running)"),
            ("{{instance}} waiting", "sum by (instance) (vllm:num_requests_waiting)"),
        ],
    ),
    Panel(
        "KV cache in use",
        [("{{instance}}", "max by (instance) (vllm:kv_cache_usage_perc)")],
        unit="percentunit",
    ),
    Panel("Time to first token", _quantiles("vllm:time_to_first_token_seconds"), unit="s"),
    Panel("Between tokens", _quantiles("vllm:inter_token_latency_seconds"), unit="s"),
    Panel(
        "Where a request's time goes, mean",
        [
            ("queue", _mean("vllm:request_queue_time_seconds")),
            ("prefill", _mean("vllm:request_prefill_time_seconds")),
            ("decode", _mean("vllm:request_decode_time_seconds")),
        ],
        unit="s",
        stacked=True,
    ),
    Panel("Whole request", _quantiles("vllm:e2e_request_latency_seconds"), unit="s"),
    Panel(
        "Tokens",
        [
            (
                "{{instance}} prompt",
                f"sum by (instance) (rate(vllm:prompt_tokens_total[{RATE}]))",
            ),
            (
                "{{instance}} generated",
                f"sum by (instance) (rate(vllm:generation_tokens_total[{RATE}]))",
            ),
        ],
    ),
    Panel(
        "Finished requests, by reason",
        [
            (
                "{{finished_reason}}",
                f"sum by (finished_reason) (rate(vllm:request_success_total[{RATE}]))",
            )
        ],
        unit="reqps",
        stacked=True,
    ),
    Panel(
        "Prefix cache, hits",
        [("{{instance}}", "vora:engine_prefix_cache_hit:ratio5m")],
        unit="percentunit",
        about="Shared system prompts and repeated images of a conversation.",
    ),
    Panel(
        "Preemptions",
        [
            (
                "{{instance}}",
                f"sum by (instance) (rate(vllm:num_preemptions_total[{RATE}]))",
            )
        ],
        about="Requests thrown out of the KV cache and computed again.",
    ),
)


def prometheus_rule() -> dict[str, Any]:
    """The rules as the Prometheus operator wants them."""
    groups = []
    for path in sorted((HERE / "prometheus" / "rules").glob("*.yml")):
        groups += yaml.safe_load(path.read_text())["groups"]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vora-serve"},
        "spec": {"groups": groups},
    }


def files() -> dict[Path, str]:
    """Everything that is generated: path and content."""
    boards = {
        "gateway": ("VoRA gateway", GATEWAY),
        "images": ("VoRA images", IMAGES),
        "engine": ("VoRA engines", ENGINE),
    }
    result = {
        HERE / "grafana" / "dashboards" / f"{name}.json": json.dumps(
            dashboard(f"vora-{name}", title, panels), indent=1
        )
        + "\n"
        for name, (title, panels) in boards.items()
    }
    head = "# Written by deploy/generate.py from deploy/prometheus/rules.\n"
    rule = yaml.safe_dump(prometheus_rule(), sort_keys=False, width=1000)
    result[HERE / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"] = head + rule
    return result


def main(arguments: Sequence[str]) -> int:
    """Write, or check what is written."""
    if list(arguments) not in ([], ["--check"]):
        sys.stderr.write("usage: python deploy/generate.py [--check]\n")
        return 2
    stale = [path for path, text in files().items() if _read(path) != text]
    if arguments:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(HERE)} is stale: run deploy/generate.py\n")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path])
    return 0


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
