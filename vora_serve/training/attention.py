"""Which keys a training step's queries see: the attention rule and two variations, in two forms.

* ``bidirectional``: causal, and the tokens of an image see each other (section 3.3);
* ``global``: causal, and the tokens of all images of a sample see each other (training only: a
  server computes an image before it knows of later ones);
* ``causal``: plain causal attention.

Of a packed sequence, a token sees its own sample alone. Three ways to compute it, by the LLM's
``attn_implementation``:

* ``sdpa``, ``eager``: a dense boolean mask;
* ``vora_documents`` (CPU): SDPA sample by sample, so that a packed sequence costs what its samples
  cost, and samples without images need no mask at all;
* ``flex_attention`` (CUDA): a block mask that skips what nobody sees, made on the device from ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface

from model_plugin.spans import dense_mask
from vora_serve.training.data import Batch

#: Name of the attention implementation that goes sample by sample.
DOCUMENTS = "vora_documents"
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


def attention_for(batch: Batch, rule: Rule, implementation: str | None) -> dict[str, Any]:
    """The rule as the arguments of an LLM's forward pass, for an attention implementation."""
    if implementation == "flex_attention":
        return {"attention_mask": block_attention(batch, rule)}
    if implementation == DOCUMENTS:
        return {"attention_mask": None, "documents": documents_of(batch, rule)}
    return {"attention_mask": dense_attention(batch, rule)}


@dataclass(frozen=True)
class Document:
    """Tokens [start, end) of a row, which see each other by ``mask``.

    Attributes:
        start, end: of the row's tokens.
        mask: bool (1, 1, end - start, end - start); causal when None.
        is_padding: whether nobody looks at them.
    """

    start: int
    end: int
    mask: torch.Tensor | None
    is_padding: bool


def documents_of(batch: Batch, rule: Rule) -> list[list[Document]]:
    """The samples of each row; without packing a row is one."""
    marks = _image_marks(batch, rule)
    rows, length = batch.input_ids.shape
    found = []
    for row in range(rows):
        ids = torch.zeros(length, dtype=torch.int32)
        if batch.document_ids is not None:
            ids = batch.document_ids[row].cpu()
        values, sizes = torch.unique_consecutive(ids, return_counts=True)
        documents, start = [], 0
        for value, size in zip(values.tolist(), sizes.tolist(), strict=True):
            own = marks[row, start : start + size]
            mask = dense_mask(own, own)[None, None] if bool((own >= 0).any()) else None
            documents.append(Document(start, start + size, mask, value < 0))
            start += size
        found.append(documents)
    return found


def documents_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: list[list[Document]] | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it, sample by sample.

    Args:
        module: the attention layer.
        query: (B, H, T, D).
        key, value: (B, H_kv, T, D).
        attention_mask: not used.
        documents: samples of each row.
        scaling: factor on the scores.

    Returns:
        (B, T, H, D), zero at padding; and no weights.

    Raises:
        ValueError: the samples' boundaries are missing.
    """
    if documents is None:
        raise ValueError("The attention implementation vora_documents is for training alone.")
    grouped = query.shape[1] != key.shape[1]
    rows = []
    for row, samples in enumerate(documents):
        pieces = []
        for sample in samples:
            span = slice(sample.start, sample.end)
            own = query[row : row + 1, :, span]
            if sample.is_padding:
                pieces.append(torch.zeros_like(own))
                continue
            pieces.append(
                functional.scaled_dot_product_attention(
                    own,
                    key[row : row + 1, :, span],
                    value[row : row + 1, :, span],
                    attn_mask=sample.mask,
                    is_causal=sample.mask is None,
                    scale=scaling,
                    enable_gqa=grouped,
                )
            )
        rows.append(torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0])
    return torch.cat(rows).transpose(1, 2), None


AttentionInterface.register(DOCUMENTS, documents_attention)


def _image_marks(batch: Batch, rule: Rule) -> torch.Tensor:
    """int32 (B, T): tokens of one mark, if it is not -1, see each other."""
    if rule == "causal":
        return torch.full_like(batch.input_ids, -1, dtype=torch.int32)
    if rule == "global":
        return batch.image_mask.to(torch.int32) - 1
    if batch.image_ids is None:
        raise ValueError("The batch does not say which image its tokens belong to.")
    return batch.image_ids
