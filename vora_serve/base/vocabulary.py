"""Control tokens that a base lacks: added to its tokenizer, with rows in its embeddings.

A new row starts as a mean of the rows that were trained. Its logit is then a mean of the others',
so greedy decoding never chooses it: answers stay what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from model_plugin import IMAGE_TOKEN

CHATML_START, CHATML_END = "<|im_start|>", "<|im_end|>"
#: Rows of an embedding are a multiple of this, which GPUs' matrix kernels like.
ROWS = 64
#: Share of the end-of-text token in the row of a new end-of-turn token.
_END_SHARE = 0.9


def add_tokens(tokenizer: PreTrainedTokenizerBase, *, chatml: bool) -> list[str]:
    """Add the control tokens that a tokenizer lacks.

    Args:
        tokenizer: changed in place.
        chatml: whether ChatML's tokens are needed as well.

    Returns:
        The tokens that were added.
    """
    wanted = [IMAGE_TOKEN, *([CHATML_START, CHATML_END] if chatml else [])]
    known = tokenizer.get_added_vocab()
    new = [token for token in wanted if token not in known]
    if new:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": new}, replace_extra_special_tokens=False
        )
    return new


@torch.no_grad()
def add_rows(
    llm: Any, tokenizer: PreTrainedTokenizerBase, new: Sequence[str], trained: Sequence[int]
) -> None:
    """Give new tokens rows in the LLM's embeddings, input and output, tied or not.

    Args:
        llm: changed in place; keeps its rows where they are enough.
        tokenizer: with the new tokens.
        new: the new tokens.
        trained: ids of the tokens that the LLM was trained with.
    """
    rows = llm.get_input_embeddings().weight.shape[0]
    needed = max(tokenizer.get_vocab().values()) + 1
    fresh = {int(tokenizer.convert_tokens_to_ids(token)): token for token in new}
    if needed > rows:
        size = -(-needed // ROWS) * ROWS
        llm.resize_token_embeddings(size, mean_resizing=False)
        fresh = dict.fromkeys(range(rows, size), "") | fresh
    tables = {id(t): t for t in (_weight(llm, "input"), _weight(llm, "output"))}
    for table in tables.values():
        # In float64, so that machines that add in another order round to the same row: a vision
        # adapter names its LLM by a hash of the tensors.
        chosen = table[torch.tensor([i for i in trained if i < rows])]
        mean = chosen.mean(0, dtype=torch.float64)
        end = table[int(tokenizer.eos_token_id)].double()
        for row, token in fresh.items():
            value = mean if token != CHATML_END else _END_SHARE * end + (1 - _END_SHARE) * mean
            table[row] = value.to(table.dtype)


def is_tied(llm: Any) -> bool:
    """Whether input and output embeddings are one matrix."""
    return _weight(llm, "input").data_ptr() == _weight(llm, "output").data_ptr()


def _weight(llm: Any, which: str) -> torch.Tensor:
    layer = llm.get_input_embeddings() if which == "input" else llm.get_output_embeddings()
    weight: torch.Tensor = layer.weight
    return weight
