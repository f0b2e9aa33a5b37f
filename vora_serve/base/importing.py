"""Importing a base: read a checkpoint, complete it, write it, and read it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from model_plugin import IMAGE_TOKEN, CheckpointError, ImageSettings
from model_plugin.export import new_folder
from vora_serve.base import gguf
from vora_serve.base.source import Source, find_source, load_source
from vora_serve.base.template import fit_template, own_template
from vora_serve.base.vocabulary import CHATML_END, add_rows, add_tokens, is_tied
from vora_serve.training.build import load_whole
from vora_serve.training.processor import load_processor
from vora_serve.training.result import check_output
from vora_serve.training.run_recipe import ModelSettings

#: What source and base are compared on.
PROMPTS = (
    "The capital of France is",
    "Question: What is 2 + 3?\nAnswer:",
    "def add(a, b):\n    return",
)
_ANSWER_TOKENS = 12
_MAX_SHARD = "1GB"


@dataclass(frozen=True)
class _Before:
    """What a source says, to be compared with its base.

    Attributes:
        ids: token ids of each prompt.
        answers: ids that greedy decoding adds to each.
        tied: whether its embeddings are one matrix.
    """

    ids: list[list[int]]
    answers: list[list[int]]
    tied: bool


def import_base(
    name: str,
    out: Path,
    *,
    dtype: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> Iterator[str]:
    """Turn an LLM's checkpoint into a base; yields what happened, a sentence at a time.

    Args:
        name: as in :func:`vora_serve.base.source.find_source`.
        out: folder of the base: a transformers checkpoint, which ``model.path`` of a recipe names.
        dtype: of its weights; the source's when None, float32 for a GGUF file.
        verify: read it back, and compare tokens and greedy answers with the source's.
        overwrite: replace ``out``.

    Raises:
        ConfigError: the source or a package is missing, or ``out`` exists.
        CheckpointError: the source cannot be used, or the base does not answer as it does.
    """
    source = find_source(name)
    check_output(out, overwrite, source=source.path)
    llm, tokenizer = load_source(source, dtype)
    before = _before(llm, tokenizer) if verify else None
    trained = sorted(tokenizer.get_vocab().values())
    own = own_template(tokenizer)
    new = add_tokens(tokenizer, chatml=own is None)
    add_rows(llm, tokenizer, new, trained)
    tokenizer.chat_template, what = fit_template(own)
    _end_answers(llm, tokenizer, own is None)
    with new_folder(out, overwrite) as work:
        llm.save_pretrained(work, max_shard_size=_MAX_SHARD)
        tokenizer.save_pretrained(str(work))
        (work / "README.md").write_text(_card(source, new, what), encoding="utf-8")
        del llm
        if before is not None:
            check_base(work, before.ids, before.answers, tied=before.tied)
    yield f"Control tokens: {', '.join(new) + ' added' if new else 'none was missing'}."
    yield f"Chat template: {what}."
    if verify:
        yield "Tokens and greedy answers equal those of the source."
    yield f"The base is in {out}."


def check_base(
    folder: Path, ids: Sequence[list[int]], answers: Sequence[list[int]], *, tied: bool
) -> None:
    """Read a base back as pretraining does, and compare it with its source.

    Args:
        folder: the base.
        ids: the source's token ids of each of :data:`PROMPTS`.
        answers: what the source's greedy decoding adds to each.
        tied: whether the source's embeddings are one matrix.

    Raises:
        CheckpointError: it differs; the sentence says in what.
    """
    processor = load_processor(ModelSettings(path=str(folder)), ImageSettings())
    image, text = {"type": "image"}, {"type": "text", "text": f"Same as {IMAGE_TOKEN}?"}
    shown = processor.apply_chat_template([{"role": "user", "content": [image, text, image]}])
    first, _, last = shown.partition(text["text"])
    if (first.count(IMAGE_TOKEN), last.count(IMAGE_TOKEN)) != (1, 1):
        raise CheckpointError("The base's chat template does not place images where they belong.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if [tokenizer(prompt).input_ids for prompt in PROMPTS] != list(ids):
        raise CheckpointError("The base's tokenizer gives other tokens than the source's.")
    llm = load_whole(AutoModelForCausalLM, "The base", str(folder), dtype="auto").eval()
    if is_tied(llm) != tied:
        raise CheckpointError("The base's embeddings are not tied as the source's are.")
    if [greedy(llm, row) for row in ids] != list(answers):
        raise CheckpointError("The base answers text otherwise than its source.")


@torch.no_grad()
def greedy(llm: Any, ids: Sequence[int], tokens: int = _ANSWER_TOKENS) -> list[int]:
    """Ids that greedy decoding adds to a prompt; nothing ends it early.

    Args:
        llm: a causal language model of transformers.
        ids: the prompt.
        tokens: how many.
    """
    found: list[int] = []
    given, cache = torch.tensor([list(ids)]), None
    for _ in range(tokens):
        output = llm(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        given = output.logits[:, -1:].argmax(-1)
        found.append(int(given))
    return found


def _before(llm: Any, tokenizer: PreTrainedTokenizerBase) -> _Before:
    ids = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    return _Before(ids, [greedy(llm, row) for row in ids], is_tied(llm))


def _end_answers(llm: Any, tokenizer: PreTrainedTokenizerBase, chatml: bool) -> None:
    """Let answers end where the chat template ends them."""
    if not chatml:
        return
    ends = llm.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [tokenizer.eos_token_id if ends is None else ends]
    end = int(tokenizer.convert_tokens_to_ids(CHATML_END))
    llm.generation_config.eos_token_id = list(dict.fromkeys([*ends, end]))


def _card(source: Source, new: Sequence[str], template: str) -> str:
    found = gguf.license_of(source.file) if source.file is not None else None
    front = f"---\nlicense: {found}\n---\n\n" if found else ""
    name = source.gguf_file or source.name
    return (
        f"{front}# Base for VoRA\n\n"
        f"{name}, imported by `vora-serve base import`. Control tokens added: "
        f"{', '.join(f'`{token}`' for token in new) or 'none'}. Chat template: {template}. "
        "The licence of the source applies.\n"
    )
