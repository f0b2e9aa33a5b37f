"""Compose files as compose reads them: variables filled in, profiles chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_][A-Z0-9_]*):-(?P<default>[^}]*)\}")

ENVIRONMENTS = (None, "cpu-multi", "gpu", "gpu-multi")
"""``env/NAME.env``; None is no file at all."""

PROFILES = (
    "baseline",
    "baseline-cpu",
    "cpu-multi",
    "fetch",
    "gpu",
    "gpu-multi",
    "loadtest",
    "observability",
    "shared-limits",
)


def read_env(path: Path) -> dict[str, str]:
    """Variables of an env file."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def env_of(name: str | None) -> dict[str, str]:
    """Variables of ``env/NAME.env``."""
    return {} if name is None else read_env(DEPLOY / "env" / f"{name}.env")


def variables() -> dict[str, set[str]]:
    """Every variable in the compose file, with the defaults it stands with."""
    found: dict[str, set[str]] = {}
    for match in _VARIABLE.finditer(COMPOSE.read_text()):
        found.setdefault(match["name"], set()).add(match["default"])
    return found


def load(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The compose file with its variables filled in and its anchors followed."""
    given = dict(env or {})
    # As compose does it: an empty value counts as none where the default follows ":-".
    text = _VARIABLE.sub(lambda match: given.get(match["name"]) or match["default"], _uncommented())
    assert "${" not in text, "a variable without a default"
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


def _uncommented() -> str:
    lines = COMPOSE.read_text().splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def services(
    env: Mapping[str, str] | None = None, profiles: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """The services that run with these variables and profiles (and those in COMPOSE_PROFILES)."""
    env = env or {}
    active = {*profiles, *filter(None, env.get("COMPOSE_PROFILES", "").split(","))}
    return {
        name: service
        for name, service in load(env)["services"].items()
        if (not service.get("profiles") or active & set(service["profiles"]))
        and int(service.get("deploy", {}).get("replicas", 1)) > 0
    }


def gateway_settings(service: Mapping[str, Any]) -> Path:
    """The settings file that a gateway's command names, here."""
    inside = Path(service["command"][service["command"].index("--config") + 1])
    mounts = dict(volume.split(":")[:2][::-1] for volume in service["volumes"])
    return (DEPLOY / mounts[str(inside.parent)] / inside.name).resolve()
