"""Text-only conversations in the words of the base LLM itself, so that it keeps them.

Prompts are written here; the answers are what the LLM's greedy decoding says. Answers that do not
end within the limit are left out: training on them would teach to stop in the middle.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.training.world import described
from vora_serve.world.wide.assets import is_held_out
from vora_serve.world.wide.words import WORDS

_FORMS = (
    "What is {a}? Answer in one short sentence.",
    "Write one sentence about {a}.",
    "Give me a word that has to do with {a}.",
    "Name three things that one may see near {a}.",
    "Is {a} a thing, a person or an idea?",
    "Write a very short poem about {a}.",
    "Explain {a} to a child in one sentence.",
    "Where would you find {a}?",
    "What do people like about {a}?",
    "What is the opposite of {a}?",
    "Translate {a} into French.",
    "Use {a} in a question.",
    "Spell the word {a}.",
    "Tell me a fact about {a}.",
    "What comes to your mind when you hear {a}?",
    "Give {a} a friendly greeting.",
)
_PLAIN = (
    "Hello!", "Who are you?", "How are you?", "Thank you!", "What can you do?", "Good morning!",
    "What is the capital of France?", "What is the capital of Japan?", "Tell me a joke.",
    "How many days has a week?", "Who wrote Romeo and Juliet?", "What colour is the sky?",
    "Why do birds sing?", "What is water made of?", "Name a planet.", "Give me some advice.",
)  # fmt: skip


def prompts(base: str, topics: Iterable[str]) -> Iterator[str]:
    """What is asked, in a fixed order without end.

    Args:
        base: ``smollm2`` is asked in general; ``tiny`` about scenes in words, which it knows alone.
        topics: further words to ask about.
    """
    if base == "tiny":
        for index in itertools.count(100_000):
            yield described(index)[0]["value"]
    rng = np.random.default_rng(31)
    words = sorted({*WORDS, *topics})
    yield from _PLAIN
    while True:
        if rng.random() < 0.1:
            a, b = (int(n) for n in rng.integers(2, 30, 2))
            yield f"What is {a} {'+' if rng.random() < 0.5 else 'times'} {b}?"
        else:
            form = _FORMS[int(rng.integers(len(_FORMS)))]
            yield form.format(a=words[int(rng.integers(len(words)))])


@torch.no_grad()
def answers(base: Path, asked: list[str], tokens: int, device: str, batch: int) -> list[str | None]:
    """The LLM's own answers, greedily decoded; None where one does not end.

    Args:
        base: folder of the LLM.
        asked: the prompts.
        tokens: longest answer.
        device: to compute on; bfloat16 on CUDA, else float32.
        batch: prompts at a time.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    llm: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device).eval()
    own = llm.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    said: list[str | None] = []
    for start in range(0, len(asked), batch):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in asked[start : start + batch]
        ]
        given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        given = given.to(device)
        made = llm.generate(
            input_ids=given.input_ids, attention_mask=given.attention_mask, do_sample=False,
            max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(ends),
        )  # fmt: skip
        for row in made[:, given.input_ids.shape[1] :].tolist():
            stop = next((i for i, token in enumerate(row) if token in ends), None)
            text = None if stop is None else tokenizer.decode(row[:stop], skip_special_tokens=True)
            said.append((text or "").strip() or None)
    return said


def write_texts(
    base: Path, kind: str, out: Path, count: int, tokens: int, device: str, topics: Iterable[str]
) -> tuple[int, int]:
    """Write ``train.jsonl``, conversations, and ``held_out.jsonl`` for ``evaluate --suite text``.

    Args:
        base: folder of the LLM.
        kind: as in :func:`prompts`.
        out: folder.
        count: prompts.
        tokens: longest answer.
        device: to compute on.
        topics: as in :func:`prompts`.

    Returns:
        Number of conversations, and of held-out texts: one prompt in eight, by its hash.
    """
    asked = list(dict.fromkeys(itertools.islice(prompts(kind, topics), count)))
    replies = answers(base, asked, tokens, device, 256 if device != "cpu" else 32)
    pairs = [(q, a) for q, a in zip(asked, replies, strict=True) if a is not None]
    held_out = [pair for pair in pairs if is_held_out(pair[0])]
    train = [pair for pair in pairs if not is_held_out(pair[0])]
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "held_out.jsonl", [{"question": q, "answer": a} for q, a in held_out])
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in train]
    _write(out / "train.jsonl", [{"messages": row} for row in rows])
    return len(train), len(held_out)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
