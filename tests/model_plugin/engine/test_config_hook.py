"""Engine settings: what is set, what is raised, what is refused and how it is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_plugin.engine import explain
from tests.checkpoints import IMAGE_PAD
from tests.model_plugin.conftest import Make
from tests.model_plugin.engine.harness import engine_config, needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]

MAX_PIXELS = 200 * 14 * 14


@pytest.fixture(scope="module")
def native(make_checkpoint: Make) -> Path:
    return make_checkpoint(resolution="native", preprocessor={"max_pixels": MAX_PIXELS})


def test_settings(native: Path) -> None:
    config = engine_config(native, long_prefill_token_threshold=16)
    scheduler = config.scheduler_config
    assert scheduler.scheduler_cls == "model_plugin.engine.scheduler.make_scheduler"
    assert scheduler.disable_chunked_mm_input
    assert scheduler.long_prefill_token_threshold == 0
    assert config.cache_config.enable_prefix_caching
    assert scheduler.enable_chunked_prefill
    model = config.model_config
    assert model.is_mm_prefix_lm
    assert model.tokenizer_mode == "vora"
    assert model.hf_config.image_token_id == IMAGE_PAD
    assert model.disable_cascade_attn
    assert model.multimodal_config.media_io_kwargs["image"] == {"image_mode": None}


@pytest.mark.parametrize(
    ("generation", "flags", "temperature"),
    [
        ({"do_sample": False}, {}, 0.0),
        ({"do_sample": False}, {"override_generation_config": {"temperature": 0.5}}, 0.5),
        ({"do_sample": False}, {"generation_config": "vllm"}, None),
        ({"do_sample": True, "temperature": 0.7}, {}, 0.7),
        ({"eos_token_id": 1}, {}, None),
    ],
)
def test_greedy_checkpoints_answer_greedily(
    make_checkpoint: Make,
    generation: dict[str, Any],
    flags: dict[str, Any],
    temperature: float | None,
) -> None:
    path = make_checkpoint()
    (path / "generation_config.json").write_text(json.dumps(generation))
    model = engine_config(path, **flags).model_config
    assert model.get_diff_sampling_param().get("temperature") == temperature


def test_causal_checkpoints_keep_vllms_scheduler(make_checkpoint: Make) -> None:
    path = make_checkpoint(config={"vision_attention_mask": "default"})
    config = engine_config(path, max_num_batched_tokens=32)
    assert not config.model_config.is_mm_prefix_lm
    assert config.scheduler_config.scheduler_cls is None
    assert config.scheduler_config.max_num_batched_tokens == 32


def test_text_only_serving_needs_no_room_for_images(native: Path) -> None:
    config = engine_config(native, limit_mm_per_prompt={"image": 0}, max_num_batched_tokens=32)
    assert config.scheduler_config.max_num_batched_tokens == 32


def test_text_only_serving_may_order_by_priority(native: Path) -> None:
    text = {"limit_mm_per_prompt": {"image": 0}, "scheduling_policy": "priority"}
    assert engine_config(native, **text).scheduler_config.policy == "priority"


def test_default_budget_is_raised(make_checkpoint: Make) -> None:
    """The image alone exceeds what vLLM would choose; running requests need room as well."""
    long = make_checkpoint(resolution="native", config={"max_position_embeddings": 16384})
    huge = {"max_pixels": 9000 * 14 * 14}
    config = engine_config(long, mm_processor_kwargs=huge, max_model_len=16384)
    assert config.scheduler_config.max_num_batched_tokens == 9000 + 8


def test_images_beyond_the_context_need_no_room(native: Path) -> None:
    config = engine_config(native, max_model_len=100, max_num_batched_tokens=108)
    assert config.scheduler_config.max_num_batched_tokens == 108


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "budget": ({"max_num_batched_tokens": 207}, r"--max-num-batched-tokens 207.*at least 208"),
    "scheduled": (
        {"max_num_scheduled_tokens": 100},
        r"--max-num-scheduled-tokens 100 is too small.*at least 208",
    ),
    "scheduler": ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "--scheduler-cls"),
    "priorities": ({"scheduling_policy": "priority"}, "--scheduling-policy priority"),
    "embeds": ({"enable_mm_embeds": True}, "--enable-mm-embeds"),
    "prompt_embeds": ({"enable_prompt_embeds": True}, "--enable-prompt-embeds"),
    "tokenizer_mode": ({"tokenizer_mode": "slow"}, "--tokenizer-mode slow"),
    "pixels": ({"mm_processor_kwargs": {"max_pixels": 50}}, "max_pixels 50"),
    "option": ({"mm_processor_kwargs": {"size": 448}}, "Unknown option 'size'"),
    "number": ({"mm_processor_kwargs": {"max_pixels": "many"}}, "whole number, not 'many'"),
    "eager_pipeline": (
        {"pipeline_parallel_size": 2, "enforce_eager": True},
        "leave out --enforce-eager",
    ),
    "context_parallel": (
        {"decode_context_parallel_size": 2, "tensor_parallel_size": 2},
        "--decode-context-parallel-size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(native: Path, name: str) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as refusal:
        engine_config(native, **settings)
    said = explain(refusal.value)
    assert re.search(message, said)
    assert "\n" not in said
    assert said.endswith(".")


def test_speculation_by_a_draft_model_is_refused(native: Path) -> None:
    draft = {"method": "draft_model", "model": str(native), "num_speculative_tokens": 2}
    with pytest.raises(ValueError, match="'draft_model' does not work with VoRA; use ngram"):
        engine_config(native, speculative_config=draft)


def test_speculation_needs_more_room(native: Path) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    engine_config(native, speculative_config=ngram, max_num_batched_tokens=200 + 8 * 4)
    with pytest.raises(ValueError, match="at least 232"):
        engine_config(native, speculative_config=ngram, max_num_batched_tokens=231)


def test_sleep_mode_is_refused_where_there_is_none(native: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("CUDA has it")
    with pytest.raises(ValueError, match=r"[Ss]leep mode is not supported"):
        engine_config(native, enable_sleep_mode=True)


def test_later_stages_must_know_of_images(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model Runner V2 reports images on the first pipeline stage only."""
    stages: dict[str, Any] = {"pipeline_parallel_size": 2}
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ValueError, match="leave out VLLM_USE_V2_MODEL_RUNNER=1"):
        engine_config(native, **stages)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    engine_config(native, **stages)


class OnCuda:
    """What the choice of a backend asks: the platform is faked, there being no GPU."""

    def __init__(self, dtype: Any, backend: Any = None) -> None:
        self.model_config = SimpleNamespace(dtype=dtype)
        self.attention_config = SimpleNamespace(backend=backend, backend_per_kind={})


def test_attention_on_cuda(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends import fa_utils
    from vllm.v1.attention.backends.registry import AttentionBackendEnum as Backend

    from model_plugin.engine.attention_cuda import SpanFlashAttentionBackend
    from model_plugin.engine.choose_attention import FALLBACKS, choose_attention

    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    monkeypatch.setattr(fa_utils, "get_flash_attn_version", lambda: 3)
    config = OnCuda(torch.bfloat16)
    choose_attention(config)  # type: ignore[arg-type]
    assert config.attention_config.backend is Backend.CUSTOM
    assert Backend.CUSTOM.get_class() is SpanFlashAttentionBackend
    # float32 is none of FlashAttention's: vLLM is left to choose.
    config = OnCuda(torch.float32)
    choose_attention(config)  # type: ignore[arg-type]
    assert config.attention_config.backend is None
    for name in FALLBACKS:
        config = OnCuda(torch.bfloat16, Backend[name])
        choose_attention(config)  # type: ignore[arg-type]
        assert config.attention_config.backend is Backend[name]
    with pytest.raises(ValueError, match="--attention-backend FLASHINFER computes images causally"):
        choose_attention(OnCuda(torch.bfloat16, Backend.FLASHINFER))  # type: ignore[arg-type]


def test_pixel_bounds_need_native_resolution(make_checkpoint: Make) -> None:
    with pytest.raises(ValueError, match="native resolution"):
        engine_config(make_checkpoint(), mm_processor_kwargs={"max_pixels": 9999})


def test_sliding_windows_are_refused(make_checkpoint: Make) -> None:
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}
    with pytest.raises(ValueError, match="sliding window"):
        engine_config(make_checkpoint(config=window))


def test_other_checkpoints_of_that_architecture_are_refused(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    for file in make_checkpoint().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = (tmp_path / "config.json").read_text().replace('"vora"', '"qwen2"')
    (tmp_path / "config.json").write_text(settings)
    with pytest.raises(ValueError, match="model_type 'qwen2' where \"vora\" is expected"):
        engine_config(tmp_path)
