"""Samples packed into sequences of one length, and the boundaries that keep them apart."""

from collections.abc import Sequence

import torch

from vora_serve.training.data import IGNORE, Batch, Example


def plan_packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which samples share a sequence: the longest first, each where it leaves least room.

    Args:
        lengths: tokens of each sample, at most ``capacity``.
        capacity: tokens of a sequence.

    Returns:
        Indices of the samples of each sequence, every sample once.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    packs: list[list[int]] = []
    rooms: list[int] = []
    for index in order:
        fitting = [p for p, room in enumerate(rooms) if room >= lengths[index]]
        if fitting:
            best = min(fitting, key=lambda p: rooms[p])
            packs[best].append(index)
            rooms[best] -= lengths[index]
        else:
            packs.append([index])
            rooms.append(capacity - lengths[index])
    return packs


def pack(examples: Sequence[Example], length: int, pad_id: int) -> Example:
    """Put samples one after another and fill up.

    Args:
        examples: of ``length`` tokens together, at most.
        length: T.
        pad_id: token that fills up.

    Returns:
        One example with ``document_ids``; images are numbered through, and the first token of a
        sample is no target, since the tokens before it belong to another.
    """
    rows = {"input_ids": [], "labels": [], "image_ids": [], "document_ids": []}  # type: ignore[var-annotated]
    images = 0
    for document, example in enumerate(examples):
        labels = example.labels.clone()
        labels[0] = IGNORE
        rows["input_ids"].append(example.input_ids)
        rows["labels"].append(labels)
        numbered = torch.where(example.image_ids >= 0, example.image_ids + images, -1)
        rows["image_ids"].append(numbered)
        rows["document_ids"].append(torch.full_like(example.image_ids, document))
        images += len(example.image_grid_hw)
    used = sum(len(row) for row in rows["input_ids"])
    if used > length:
        raise ValueError(f"{used} tokens do not fit into {length}.")
    for name, fill in (("input_ids", pad_id), ("labels", IGNORE)):
        rows[name].append(torch.full((length - used,), fill, dtype=torch.int64))
    for name in ("image_ids", "document_ids"):
        rows[name].append(torch.full((length - used,), -1, dtype=torch.int32))
    return Example(
        **{name: torch.cat(parts) for name, parts in rows.items()},
        pixel_values=torch.cat([example.pixel_values for example in examples]),
        image_grid_hw=torch.cat([example.image_grid_hw for example in examples]),
    )


def padding_share(batches: Sequence[Batch]) -> float:
    """Part of the batches' tokens that only fill up."""
    total = sum(batch.input_ids.numel() for batch in batches)
    used = sum(int(batch.real_tokens) for batch in batches)
    return 1 - used / total if total else 0.0
