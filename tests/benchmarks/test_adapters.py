"""The table of merged against unmerged: ratios are of the same turn."""

from __future__ import annotations

from benchmarks.adapters.__main__ import table


def turn(factor: float) -> dict[str, float]:
    return {
        "ttft_ms": 10 * factor,
        "ttft_batch_ms": 50 * factor,
        "tokens_per_s": 100 / factor,
        "memory_mib": 900,
        "engine_mib": 300,
    }


def test_a_machine_that_slows_down_changes_no_ratio() -> None:
    merged = [turn(slow) for slow in (1, 5, 2)]
    other = [turn(slow * 1.5) for slow in (1, 5, 2)]
    lines = table({"merged": merged, "rank 16, 1 adapter": other}).splitlines()
    assert lines[2] == (
        "| merged | 20 ms (1.00x) | 100 ms (1.00x) | 50 (1.00x) | 900 MiB (1.00x) | "
        "300 MiB (1.00x) |"
    )
    assert "30 ms (1.50x)" in lines[3]
    assert "(0.67x)" in lines[3]
