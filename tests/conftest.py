"""Settings that hold for every test: nothing is looked up outside, engines stay small."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that spin for each other cost tiny models more than they bring, tenfold on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

# No verdict depends on how fast the machine is; CI draws the same examples each time.
settings.register_profile(
    "house",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("house")

#: Files that take longest start first: with several workers, the last to start would be waited for.
_LONGEST = (
    "gateway/test_conformance.py",
    "tests/test_end_to_end.py",
    "training/test_commands.py",
    "gateway/test_tenants.py",
    "loadtest/test_runner.py",
    "gateway/test_fuzz.py",
    "training/test_faults.py",
    "vora_serve/test_lean_environment.py",
    "docs/test_mistakes.py",
    "gateway/test_attack_process.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the others keep their order."""

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, end in enumerate(_LONGEST) if path.endswith(end)), len(_LONGEST))

    items.sort(key=rank)
