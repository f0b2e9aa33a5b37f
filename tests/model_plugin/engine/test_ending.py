"""How processes that vLLM spawns end. With real ones: tests/deploy/test_containers.py."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
from typing import Any

import pytest

from model_plugin.engine.registration import _end_soon


@pytest.mark.parametrize("spawned", [True, False])
def test_only_spawned_processes_end_without_a_search_for_garbage(
    monkeypatch: pytest.MonkeyPatch, spawned: bool
) -> None:
    """The process of who asked for an engine may go on to other things."""
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    parent = multiprocessing.current_process() if spawned else None
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    _end_soon()
    assert registered == ([gc.freeze] if spawned else [])
