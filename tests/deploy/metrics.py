"""Names of metrics: in queries, and in expositions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import yaml

from tests.deploy.compose import DEPLOY

_NAME = re.compile(r"\b(?:vora|vllm)[a-z0-9_]*[:_][a-zA-Z0-9_:]+")
_SUFFIX = re.compile(r"_(?:bucket|sum|count|total)$")


def dashboards() -> dict[str, list[str]]:
    """Every dashboard's queries."""
    result: dict[str, list[str]] = {}
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        panels = json.loads(path.read_text())["panels"]
        result[path.stem] = [target["expr"] for panel in panels for target in panel["targets"]]
    return result


def rules() -> tuple[list[str], set[str]]:
    """The queries of all rules, and the names that they record."""
    queries: list[str] = []
    recorded: set[str] = set()
    for path in sorted((DEPLOY / "prometheus" / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                queries.append(rule["expr"])
                if "record" in rule:
                    recorded.add(rule["record"])
    return queries, recorded


def used(queries: Iterable[str]) -> set[str]:
    """Names of this project's and vLLM's metrics in queries."""
    text = "\n".join(queries)
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', text)))


def scraped() -> set[str]:
    """Metrics that dashboards and rules need from gateways and engines, recorded ones left out."""
    queries, recorded = rules()
    boards = [query for board in dashboards().values() for query in board]
    return used([*queries, *boards]) - recorded


def exposed(text: str) -> set[str]:
    """Names of samples that an exposition has, or would have once something happened."""
    names: set[str] = set()
    for match in re.finditer(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        name, kind = match.groups()
        names.add(name)
        if kind == "histogram":
            names |= {f"{name}_{suffix}" for suffix in ("bucket", "sum", "count")}
    return names


def families(names: Iterable[str]) -> set[str]:
    """Names without what kinds of metrics append."""
    return {_SUFFIX.sub("", name) for name in names}
