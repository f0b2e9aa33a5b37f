"""The self-test passes where kernels are right, fails where one is wrong, and says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model_plugin.engine.harness import needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]

SMALL = ["--batches", "3", "--repeats", "1", "--heads", "4", "--kv-heads", "2"]


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_plugin.engine import check

    monkeypatch.setattr(check, "SHAPES", {"cpu": ((1, 64), (2, 32))})


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    from model_plugin.engine.check import main

    assert main(SMALL) == 0
    said = capsys.readouterr().out
    assert "ok     " in said
    assert "| 2 x 32 | " in said


def test_flash_attentions_launches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA kernels' adapter, with the reference in place of FlashAttention."""
    from vllm.v1.attention.backends import flash_attn

    from model_plugin.engine import check_kernels
    from model_plugin.engine.check import main
    from model_plugin.engine.kernels import reference_attention

    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", reference_attention, raising=False)
    flash = {
        "FlashAttention 3, two launches": check_kernels.flash(3),
        "FlashAttention 3, image rows skipped": check_kernels.flash(3, skip=True),
    }
    monkeypatch.setattr(check_kernels, "kernels_here", lambda device: flash)
    assert main(SMALL) == 0
    said = capsys.readouterr().out
    assert all(f"ok     {name}" in said for name in flash)


def test_a_kernel_that_does_not_run_leaves_the_others_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_plugin.engine import check_kernels
    from model_plugin.engine.check import main

    def broken(batch: Any, *, spans: bool) -> Any:
        raise ModuleNotFoundError("No module named 'cutlass'")

    kernels = {"broken": broken, "CPU": check_kernels.cpu}
    monkeypatch.setattr(check_kernels, "kernels_here", lambda device: kernels)
    assert main(SMALL) == 1
    said = capsys.readouterr().out
    assert "WRONG  broken: does not run: No module named 'cutlass'" in said
    assert "ok     CPU" in said


def test_a_kernel_that_ignores_images_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_plugin.engine import check_kernels
    from model_plugin.engine.check import main

    cpu = check_kernels.cpu

    def causal(batch: Any, *, spans: bool) -> Any:
        return cpu(batch, spans=False)

    monkeypatch.setattr(check_kernels, "kernels_here", lambda device: {"causal": causal})
    assert main(SMALL) == 1
    assert "WRONG  causal" in capsys.readouterr().out


@pytest.mark.engine
@pytest.mark.slow
def test_end_to_end() -> None:
    from model_plugin.engine.check_end_to_end import compare

    good, said = compare(None, torch.float32)
    assert good, said
