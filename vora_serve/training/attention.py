"""Which keys a training step's queries see: the attention rule and two variations, in two forms.

* ``bidirectional``: causal, and the tokens of an image see each other (section 3.3);
* ``global``: causal, and the tokens of all images of a sample see each other (training only: a
  server computes an image before it knows of later ones);
* ``causal``: plain causal attention.

Of a packed sequence, a token sees its own sample alone. On CPU the rule is a dense boolean mask for
SDPA; on CUDA, with ``attn_implementation="flex_attention"``, a block mask that skips what nobody
sees, made on the device from ids alone.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from model_plugin.spans import dense_mask
from vora_serve.training.data import Batch

Rule = Literal["bidirectional", "global", "causal"]
MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def dense_attention(batch: Batch, rule: Rule) -> torch.Tensor:
    """The rule as a matrix.

    Args:
        batch: padded or packed.
        rule: which rule.

    Returns:
        bool (B, 1, T, T), True where a key is visible.
    """
    if rule == "bidirectional" and batch.visible is not None:
        return batch.visible
    marks = _image_marks(batch, rule)
    visible = dense_mask(marks, marks)
    if batch.document_ids is not None:
        visible &= batch.document_ids[:, :, None] == batch.document_ids[:, None, :]
    return visible[:, None]


def mask_mod(batch: Batch, rule: Rule) -> MaskMod:
    """The rule as FlexAttention asks for it: is a key visible to a query of a row?"""
    marks = _image_marks(batch, rule)
    documents = batch.document_ids
    if documents is None:
        documents = torch.zeros_like(marks)

    def visible(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        same_image = (marks[row, query] == marks[row, key]) & (marks[row, query] >= 0)
        same_document = documents[row, query] == documents[row, key]
        return same_document & ((key <= query) | same_image)

    return visible


def block_attention(batch: Batch, rule: Rule) -> BlockMask:
    """The rule as FlexAttention's block mask, (B, 1, T, T) in blocks of 128 by 128."""
    rows, length = batch.input_ids.shape
    return create_block_mask(
        mask_mod(batch, rule), rows, None, length, length, device=batch.input_ids.device
    )


def attention_for(batch: Batch, rule: Rule, implementation: str | None) -> Any:
    """The rule in the form that an attention implementation takes."""
    if implementation == "flex_attention":
        return block_attention(batch, rule)
    return dense_attention(batch, rule)


def _image_marks(batch: Batch, rule: Rule) -> torch.Tensor:
    """int32 (B, T): tokens of one mark, if it is not -1, see each other."""
    if rule == "causal":
        return torch.full_like(batch.input_ids, -1, dtype=torch.int32)
    if rule == "global":
        return batch.image_mask.to(torch.int32) - 1
    if batch.image_ids is None:
        raise ValueError("The batch does not say which image its tokens belong to.")
    return batch.image_ids
