"""Vision adapters on two ranks: factors are sharded as their layers are, embedders are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_plugin.conftest import noise_image
from tests.model_plugin.engine.harness import Case, assert_exact, needs_vllm
from tests.model_plugin.engine.hosts import ask, make_world, running_host

pytestmark = [
    needs_vllm,
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]


def test_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own, as a server's are; dropped on both."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    world = make_world(tmp_path)
    asked = [
        ("docs", Case("Is it <image> or not?", [noise_image(168, 98, 2)])),
        ("shapes", Case("Is it <image> or not?", [noise_image(168, 98, 2)])),
        (None, Case("A circle and a square.")),
    ]
    with running_host(world, ("docs", "shapes"), processes=True, tensor_parallel_size=2) as host:
        outputs = ask(host, asked, prompt_logprobs=False)
        host.drop("docs")
        left = [host.registry.loaded["shapes"].key]
        assert host.llm.collective_rpc("vora_adapters") == [left, left]
    for (name, case), output in zip(asked[:2], outputs[:2], strict=True):
        assert_exact(world.oracle(name), [case], [output])
