"""One LLM with several vision adapters: each answers as its merged twin does, beside the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from model_plugin.errors import CheckpointError, ConfigError, PlaceholderError
from tests.model_plugin.conftest import noise_image
from tests.model_plugin.engine.harness import (
    BLOCK,
    TOLERANCE,
    Case,
    assert_exact,
    dense,
    difference,
    needs_vllm,
    recorded_preemptions,
    running_engine,
)
from tests.model_plugin.engine.hosts import LARGEST, World, ask, make_world, running_host
from tests.oracle import Oracle

pytestmark = [needs_vllm, pytest.mark.engine, pytest.mark.filterwarnings("default")]

SEQUENCES = 8
#: Blocks of KV cache: enough for one request of the longest kind, not for eight.
BLOCKS = 18
SETTINGS: dict[str, Any] = {
    "max_model_len": BLOCK * (BLOCKS - 2),
    "max_num_seqs": SEQUENCES,
    "max_num_batched_tokens": LARGEST + SEQUENCES,
    "num_gpu_blocks_override": BLOCKS,
}
SMALL, WIDE, TALL = noise_image(70, 56, 1), noise_image(168, 98, 2), noise_image(84, 140, 3)
TEXT = Case("<|im_start|>user\nTell me about the colours of a circle, a square and a star.")
ONE = Case("Tell me about this: <image> What is it?", [WIDE])
TWO = Case("Is it <image> or <image><image>?", [SMALL, TALL, WIDE])
NAMES = ("docs", "shapes")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def oracles(world: World) -> dict[str, Oracle]:
    return {name: world.oracle(name) for name in world.merged}


@pytest.fixture(scope="module")
def host(world: World) -> Iterator[Any]:
    with running_host(world, NAMES, **SETTINGS) as host:
        yield host


@pytest.fixture(autouse=True)
def fresh(host: Any) -> None:
    host.llm.reset_prefix_cache()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", [TEXT, ONE, TWO])
def test_an_adapter_is_its_merged_twin(
    host: Any, oracles: dict[str, Oracle], name: str, case: Case
) -> None:
    assert_exact(oracles[name], [case], ask(host, [(name, case)]))


def test_all_in_one_batch(host: Any, oracles: dict[str, Oracle], world: World) -> None:
    """Adapters, images of each, and the LLM alone, eight at once."""
    asked = [(name, case) for case in (ONE, TEXT, TWO) for name in (*NAMES, None)][:-1]
    asked = [(name, case) for name, case in asked if name is not None or not case.images]
    outputs = ask(host, [*asked, (None, TEXT)], prompt_logprobs=False)
    for (name, case), output in zip([*asked, (None, TEXT)], outputs, strict=True):
        if name is None:
            assert plain_difference(world, case, output) < TOLERANCE
        else:
            assert_exact(oracles[name], [case], [output])


def plain_difference(world: World, case: Case, output: Any) -> float:
    """Largest difference in log-probability between an answer and transformers' plain LLM."""
    llm = AutoModelForCausalLM.from_pretrained(world.llm, dtype=torch.float32)
    answer = list(output.outputs[0].token_ids)
    with torch.no_grad():
        logits = llm(torch.tensor([[*output.prompt_token_ids, *answer]])).logits[0]
    expected = logits.log_softmax(-1).numpy()
    start = len(output.prompt_token_ids) - 1
    rows = enumerate(output.outputs[0].logprobs)
    return max(float(abs(dense(row) - expected[start + i]).max()) for i, row in rows)


def test_vllms_own_code_for_cpu_gives_the_llm_an_adapter(
    host: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: with index -1, the LLM's tokens would get the last adapter's factors."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from model_plugin.engine.lora_cpu import GroupedLoRA

    monkeypatch.setattr(GroupedLoRA, "add_lora_linear", PunicaWrapperCPU.add_lora_linear)
    outputs = ask(host, [("docs", TEXT), (None, TEXT)], prompt_logprobs=False)
    assert plain_difference(world, TEXT, outputs[1]) > 100 * TOLERANCE


def test_swapped_embedders_are_noticed(host: Any, oracles: dict[str, Oracle], world: World) -> None:
    """Control: an adapter with another's embedder fails the comparison that it passed."""
    host.drop("shapes")
    host.load("other", world.adapters["other"])
    [output] = ask(host, [("other", ONE)])
    assert difference(oracles["other"], ONE, output) < TOLERANCE
    model = host.llm.llm_engine.model_executor.driver_worker.get_model()
    key, wrong = (host.registry.loaded[name].key for name in ("other", "docs"))
    right, model.embedders[key] = model.embedders[key], model.embedders[wrong]
    try:
        case = Case(ONE.prompt, [noise_image(168, 98, 5)])  # not in a cache yet
        [output] = ask(host, [("other", case)])
        assert difference(oracles["other"], case, output) > 100 * TOLERANCE
    finally:
        model.embedders[key] = right
        host.drop("other")
        host.load("shapes", world.adapters["shapes"])


def test_the_prefix_cache_is_keyed_by_adapter_and_image(
    host: Any, oracles: dict[str, Oracle]
) -> None:
    other = Case(ONE.prompt, [noise_image(168, 98, 6)])
    asked = [("docs", ONE), ("docs", other), ("docs", ONE), ("docs", TEXT), ("shapes", TEXT)]
    asked += [("docs", TEXT), ("shapes", TEXT)]
    outputs = [ask(host, [pair], prompt_logprobs=False)[0] for pair in asked]
    hits = [output.num_cached_tokens > 0 for output in outputs]
    assert hits == [False, False, True, False, False, True, True]
    for (name, case), output in zip(asked, outputs, strict=True):
        assert_exact(oracles[name], [case], [output])


def test_hits_inside_images_among_many(host: Any, oracles: dict[str, Oracle]) -> None:
    asked = [
        (NAMES[i % 2], Case(f"x <image> Q{i}", [(SMALL, WIDE, TALL)[i % 3]])) for i in range(6)
    ]
    for _ in range(2):
        outputs = ask(host, asked, prompt_logprobs=False)
        for (name, case), output in zip(asked, outputs, strict=True):
            assert_exact(oracles[name], [case], [output])


def test_preemption(host: Any, oracles: dict[str, Oracle]) -> None:
    sizes = ((168, 98), (84, 140), (70, 56))
    asked = [
        (
            NAMES[i % 2],
            Case(f"Q{i}: <image> and so on?", [noise_image(*sizes[i % 3], i)], max_tokens=40),
        )
        for i in range(SEQUENCES)
    ]
    with recorded_preemptions(host.llm) as preempted:
        outputs = ask(host, asked, prompt_logprobs=False)
    assert preempted
    for (name, case), output in zip(asked, outputs, strict=True):
        assert_exact(oracles[name], [case], [output])


def test_the_llm_alone_sees_nothing_and_says_so(host: Any) -> None:
    with pytest.raises(PlaceholderError, match=r"answers text only; .* \(docs, shapes\)"):
        ask(host, [(None, ONE)])


def test_images_and_factors_are_the_same_adapters(host: Any) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    prompt = host.prompt("shapes", ONE.request())
    with pytest.raises(VLLMValidationError, match="for another vision adapter"):
        host.llm.generate([prompt], SamplingParams(max_tokens=1), lora_request=host.request("docs"))
    with pytest.raises(VLLMValidationError, match="for another vision adapter"):
        host.llm.generate([prompt], SamplingParams(max_tokens=1))


def test_drop_and_reload_under_the_same_name(
    host: Any, oracles: dict[str, Oracle], world: World
) -> None:
    """Other contents under a name share no cache with what went before, and memory is freed."""
    assert_exact(oracles["docs"], [ONE], ask(host, [("docs", ONE)], prompt_logprobs=False))
    keys = host.llm.collective_rpc("vora_adapters")[0]
    gone = host.registry.loaded["docs"]
    host.drop("docs")
    assert host.llm.collective_rpc("vora_adapters")[0] == [key for key in keys if key != gone.key]
    assert len(host.llm.llm_engine.list_loras()) == 1
    assert not gone.path.is_symlink()
    host.load("docs", world.adapters["other"])
    try:
        [output] = ask(host, [("docs", ONE)], prompt_logprobs=False)
        assert output.num_cached_tokens == 0
        assert_exact(oracles["other"], [ONE], [output])
    finally:
        host.drop("docs")
        host.load("docs", world.adapters["docs"])
    assert_exact(oracles["docs"], [ONE], ask(host, [("docs", ONE)], prompt_logprobs=False))


def test_what_does_not_fit_is_refused(host: Any, world: World, tmp_path: Any) -> None:
    from model_plugin.adapter_export import export_adapter
    from tests.model_plugin.test_adapters import write_run

    stranger = export_adapter(write_run(tmp_path / "a", seed=3), tmp_path / "stranger").folder
    with pytest.raises(CheckpointError, match="trained on another LLM"):
        host.load("stranger", stranger)
    high = {"lora": {"r": 12, "layers": 1, "target_modules": ["mlp.up_proj"]}}
    run = write_run(tmp_path / "b", config=high)
    with pytest.raises(ConfigError, match=r"ranks up to 8\. Truncate it"):
        host.load("high", export_adapter(run, tmp_path / "high").folder)
    large = write_run(tmp_path / "c", image_size=28 * 14)
    with pytest.raises(ConfigError, match=r"up to 784 tokens .* up to 120"):
        host.load("large", export_adapter(large, tmp_path / "large").folder)
    assert sorted(host.registry.loaded) == ["docs", "shapes"]


@pytest.mark.slow
def test_the_llms_text_is_plain_vllms_bit_for_bit(host: Any, world: World) -> None:
    """Alone, and beside adapters' requests: as beside texts of their lengths in plain vLLM.

    The number of tokens in a step chooses how matrix products are split, in plain vLLM as here.
    """
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=-1)
    texts: list[Any] = [TEXT.prompt, "x y z", "What?"]
    alone = host.llm.generate(texts, params, use_tqdm=False)
    host.llm.reset_prefix_cache()
    asked: list[tuple[str | None, Case]] = [(None, Case(text, max_tokens=12)) for text in texts]
    asked += [
        ("docs", Case(ONE.prompt, ONE.images, 12)),
        ("shapes", Case(TWO.prompt, TWO.images, 12)),
    ]
    beside = ask(host, asked, prompt_logprobs=False)
    others = [{"prompt_token_ids": output.prompt_token_ids} for output in beside[len(texts) :]]
    with running_engine(world.llm, **SETTINGS) as plain:
        plain_alone = plain.generate(texts, params, use_tqdm=False)
        plain.reset_prefix_cache()
        plain_beside = plain.generate([*texts, *others], params, use_tqdm=False)
    for ours, theirs in ((alone, plain_alone), (beside, plain_beside)):
        assert [list(o.outputs[0].token_ids) for o in ours[:3]] == [
            list(o.outputs[0].token_ids) for o in theirs[:3]
        ]
        assert (rows(ours[:3]) == rows(theirs[:3])).all()
    assert abs(rows(alone) - rows(beside[:3])).max() < 1e-5


def rows(outputs: Any) -> Any:
    """Log-probabilities of each answer's tokens over the vocabulary."""
    return np.stack([[dense(row) for row in output.outputs[0].logprobs] for output in outputs])
