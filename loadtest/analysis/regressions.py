"""``loadtest compare OLD NEW``: what got worse between two runs of the same settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vora_core.errors import ConfigError

#: (measure, path in a server's results, whether more is better).
_WATCHED: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("TTFT p50", ("ttft_ms", "p50"), False),
    ("TTFT p99", ("ttft_ms", "p99"), False),
    ("TPOT p50", ("tpot_ms", "p50"), False),
    ("end to end p50", ("e2e_ms", "p50"), False),
    ("requests per second", ("requests_per_s",), True),
    ("goodput per second", ("goodput_per_s",), True),
    ("CPU seconds per request", ("cpu_s_per_request",), False),
    ("peak memory", ("peak_rss_mib",), False),
)


def load_results(path: Path) -> dict[str, Any]:
    """``results.json`` of a run.

    Args:
        path: the file, or the run's folder.

    Raises:
        ConfigError: it is not there, or not one.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The results {file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigError(f"{file} is not JSON.") from None
    if found.get("format") != 1:
        raise ConfigError(f"{file} does not hold results of a load test.")
    return found


def compare_runs(
    old: dict[str, Any], new: dict[str, Any], threshold: float = 0.1
) -> tuple[list[str], bool]:
    """Compare measure by measure.

    A change counts when it exceeds the threshold. The two runs were not paired, so a machine that
    was busier shows as a regression of everything; ratios between servers of one run are compared
    too, and those it does not touch.

    Args:
        old, new: results.
        threshold: relative change.

    Returns:
        Lines to show, and whether anything got worse, failed or is missing.
    """
    lines: list[str] = []
    worse = False
    if old["head"]["machine"] != new["head"]["machine"]:
        lines.append("note: the two runs are from different machines")
    points = {point["id"]: point for point in new["points"]}
    compared = 0
    for point in old["points"]:
        now = points.get(point["id"])
        if now is None:
            lines.append(f"MISSING {point['id']}: measured before, not now")
            worse = True
            continue
        for name, was in point["servers"].items():
            if name not in now["servers"]:
                lines.append(f"MISSING {point['id']} {name}: measured before, not now")
                worse = True
                continue
            found = now["servers"][name]
            compared += 1
            if found["failed"] > was["failed"]:
                lines.append(f"WORSE {point['id']} {name}: {found['failed']} requests failed")
                worse = True
            for label, keys, more_is_better in _WATCHED:
                change = _change(_at(was, keys), _at(found, keys))
                if change is None or abs(change) <= threshold:
                    continue
                bad = (change < 0) == more_is_better
                worse |= bad
                lines.append(
                    f"{'WORSE' if bad else 'better'} {point['id']} {name}: "
                    f"{label} {change:+.1%} ({_at(was, keys):.4g} -> {_at(found, keys):.4g})"
                )
        worse |= _compare_ratios(point, now, threshold, lines)
    if not compared:
        raise ConfigError("The two runs have no point and server in common.")
    if not lines:
        lines.append(f"no change above {threshold:.0%} in {compared} measurements")
    return lines, worse


def _compare_ratios(
    was: dict[str, Any], now: dict[str, Any], threshold: float, lines: list[str]
) -> bool:
    """Ratios that rose, their intervals apart; higher is worse but for throughput."""
    worse = False
    after = {(pair["first"], pair["second"]): pair for pair in now["compared"]}
    for pair in was["compared"]:
        other = after.get((pair["first"], pair["second"]))
        for name in ("ttft", "tpot", "e2e", "cpu_s_per_request", "memory"):
            if other is None or name not in pair or name not in other:
                continue
            before, ratio = pair[name]["ratio"], other[name]["ratio"]
            if before["high"] is None or ratio["low"] is None:
                continue
            if ratio["low"] > before["high"] and ratio["value"] > before["value"] * (1 + threshold):
                lines.append(
                    f"WORSE {was['id']}: {name} of {pair['first']} / {pair['second']} "
                    f"{before['value']:.3f} -> {ratio['value']:.3f}"
                )
                worse = True
    return worse


def _at(tree: dict[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _change(old: float | None, new: float | None) -> float | None:
    return None if not old or new is None else new / old - 1
