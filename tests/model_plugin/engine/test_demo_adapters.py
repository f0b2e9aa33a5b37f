"""The demo's LLM with the two adapters that were trained on it: shapes, and handwritten digits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from model_plugin.export import merge_checkpoint
from tests.model_plugin.engine.harness import (
    BLOCK,
    TOLERANCE,
    Case,
    assert_exact,
    dense,
    needs_vllm,
    recorded_preemptions,
)
from tests.model_plugin.engine.hosts import World, ask, running_host
from tests.oracle import Oracle
from vora_core.adapter import AdapterHeader
from vora_serve.demo.adapters import SPECIALISTS, read_adapters_recipe
from vora_serve.world.suite import Item, build_suite, is_right

pytestmark = [
    needs_vllm,
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

NAMES = ("shapes", "digits")
SEQUENCES = 8
#: Blocks of KV cache: not enough for eight questions with their images and long answers.
BLOCKS = 26
SETTINGS: dict[str, Any] = {
    "max_model_len": 256,
    "max_num_seqs": SEQUENCES,
    "max_num_batched_tokens": 1024,
    "num_gpu_blocks_override": BLOCKS,
}
#: Held-out questions of an adapter's own groups, of which most must be answered right.
QUESTIONS = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The checked-in files; the merged twins are made of them in float32."""
    folder = tmp_path_factory.mktemp("twins")
    wide = folder / "llm"
    shutil.copytree(SPECIALISTS / "llm", wide)
    weights = wide / "model.safetensors"
    save_file({n: t.float() for n, t in load_file(weights).items()}, weights, {"format": "pt"})
    adapters = {name: SPECIALISTS / name for name in NAMES}
    merged = {
        name: merge_checkpoint(adapter, folder / name, base=wide)
        for name, adapter in adapters.items()
    }
    return World(SPECIALISTS / "llm", adapters, merged)


@pytest.fixture(scope="module")
def oracles(world: World) -> dict[str, Oracle]:
    return {name: world.oracle(name) for name in NAMES}


@pytest.fixture(scope="module")
def host(world: World) -> Iterator[Any]:
    with running_host(world, NAMES, rank=RANK, **SETTINGS) as host:
        yield host


@pytest.fixture(autouse=True)
def fresh(host: Any) -> None:
    host.llm.reset_prefix_cache()


RANK = max(AdapterHeader.open(SPECIALISTS / name).rank for name in NAMES)
GROUPS = {name: recipe.groups for name, recipe in read_adapters_recipe().adapters.items()}
SUITE = build_suite(QUESTIONS)


def own(name: str, count: int) -> list[Item]:
    """Held-out questions of an adapter's own groups, with different answers."""
    items = [item for item in SUITE if item.group in GROUPS[name]]
    return items[:: len(items) // count][:count]


def asks(item: Item, max_tokens: int = 4) -> Case:
    """The question as the chat template writes it."""
    return text(f"<image>{item.question}", max_tokens, [item.image])


def text(question: str, max_tokens: int = 4, images: Any = ()) -> Case:
    return Case(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        list(images),
        max_tokens,
    )


BASE = text("A red circle is left of a blue square. Which colour is the square?", max_tokens=12)


def said(oracles: dict[str, Oracle], output: Any) -> str:
    """An answer up to the token that ends it."""
    tokenizer = oracles["shapes"].tokenizer
    words = tokenizer.decode(list(output.outputs[0].token_ids), skip_special_tokens=False)
    return str(words.split("<|im_end|>")[0])


def share_right(host: Any, oracles: dict[str, Oracle], name: str, items: list[Item]) -> float:
    outputs = ask(host, [(name, asks(item)) for item in items], prompt_logprobs=False)
    right = [is_right(said(oracles, out), i.answer) for i, out in zip(items, outputs, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("name", NAMES)
def test_each_answers_its_own_family(host: Any, oracles: dict[str, Oracle], name: str) -> None:
    assert share_right(host, oracles, name, own(name, QUESTIONS)) >= 0.8


def second_turn(item: Item) -> Case:
    """The same question again: the blocks of KV cache before it hold the whole image."""
    first = (
        f"<image>{item.question}<|im_end|>\n<|im_start|>assistant\n{item.answer}<|im_end|>\n"
        "<|im_start|>user\n"
    )
    return text(first + item.question, images=[item.image])


def test_each_is_its_merged_twin_among_the_other(host: Any, oracles: dict[str, Oracle]) -> None:
    """All requests at once, the LLM's own among them."""
    items = [(name, asks(item)) for name in NAMES for item in own(name, 9)]
    mixed = [items[i::9] for i in range(9)]
    asked = [pair for pairs in mixed for pair in (*pairs, (None, BASE))]
    for (name, case), output in zip(asked, ask(host, asked, prompt_logprobs=False), strict=True):
        if name is not None:
            assert_exact(oracles[name], [case], [output])


def test_prefix_cache_hits(host: Any, oracles: dict[str, Oracle]) -> None:
    """The second time, images come from the cache: each adapter's own."""
    same = own("shapes", 3)  # both adapters are asked about the same images
    asked = [(name, second_turn(item)) for item in same for name in NAMES]
    for hits in (False, True):
        outputs = ask(host, asked, prompt_logprobs=False)
        assert all((output.num_cached_tokens >= 2 * BLOCK) == hits for output in outputs)
        for (name, case), output in zip(asked, outputs, strict=True):
            assert_exact(oracles[name], [case], [output])


def test_preemption(host: Any, oracles: dict[str, Oracle]) -> None:
    asked = [
        (name, asks(item, max_tokens=60)) for name in NAMES for item in own(name, SEQUENCES // 2)
    ]
    with recorded_preemptions(host.llm) as preempted:
        outputs = ask(host, asked, prompt_logprobs=False)
    assert preempted
    for (name, case), output in zip(asked, outputs, strict=True):
        assert_exact(oracles[name], [case], [output])


@pytest.mark.parametrize("name", NAMES)
def test_swapped_embedders_are_noticed(host: Any, oracles: dict[str, Oracle], name: str) -> None:
    """Control: with the other's embedder and image settings, and its own LoRA, it is no twin."""
    model = host.llm.llm_engine.model_executor.driver_worker.get_model()
    one, two = (host.registry.loaded[each] for each in NAMES)
    cases = [asks(item) for item in own(name, 6)]

    def swap() -> None:
        one.settings, two.settings = two.settings, one.settings
        embedders = model.embedders
        embedders[one.key], embedders[two.key] = embedders[two.key], embedders[one.key]
        host.llm.reset_mm_cache()
        host.llm.llm_engine.reset_encoder_cache()
        host.llm.reset_prefix_cache()

    swap()
    try:
        outputs = ask(host, [(name, case) for case in cases], prompt_logprobs=False)
    finally:
        swap()
    for case, output in zip(cases, outputs, strict=True):
        assert answer_difference(oracles[name], case, output) > 100 * TOLERANCE
    assert_exact(oracles[name], cases, ask(host, [(name, case) for case in cases]))


def answer_difference(oracle: Oracle, case: Case, output: Any) -> float:
    """Largest difference in the answer's log-probabilities, however long the prompt became."""
    answer = list(output.outputs[0].token_ids)
    chunks = oracle.chunks(case.prompt)
    expected = oracle.logprobs([*chunks[:-1], chunks[-1] + answer], case.images)
    found = [dense(row) for row in output.outputs[0].logprobs]
    start = len(expected) - len(answer) - 1
    return max(float(abs(row - expected[start + i]).max()) for i, row in enumerate(found))
