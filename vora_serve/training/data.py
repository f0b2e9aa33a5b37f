"""Conversations to tensors: token ids, labels, patches, and which image each token belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from model_plugin import ImageError, VoRAProcessor
from model_plugin.spans import block_ids, dense_mask, spans_from_lengths
from vora_serve.training.labels import Labelled, Labeller, SampleError

IGNORE = -100


class TooLongError(SampleError):
    """A sample has more tokens than a sequence may.

    Args:
        message: the sentence.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, "too long")


@dataclass(frozen=True)
class Sample:
    """A conversation and its images.

    Attributes:
        messages: OpenAI-style; content is a string, or a list of ``{"type": "text", "text": ...}``
            and ``{"type": "image"}``.
        images: Pillow images, in the order of their parts.
    """

    messages: list[dict[str, Any]]
    images: Sequence[Image.Image] = ()


class SampleSource(Protocol):
    """Samples by index, so that a run can resume anywhere and workers never share one."""

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index`` of an endless sequence."""
        ...


@dataclass(frozen=True)
class Example:
    """A tokenised sample of T tokens.

    Attributes:
        input_ids: int64 (T,), every image as as many placeholders as it has tokens.
        labels: int64 (T,), -100 where there is no target: only answers and the token that ends
            them are learned.
        image_ids: int32 (T,), -1 at text, i at tokens of the i-th image.
        pixel_values: float32 (sum of h * w, 3 * P * P).
        image_grid_hw: int64 (num_images, 2).
        document_ids: int32 (T,), of a packed example: which sample a token belongs to, -1 at
            padding; None when it is one sample.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    image_ids: torch.Tensor
    pixel_values: torch.Tensor
    image_grid_hw: torch.Tensor
    document_ids: torch.Tensor | None = None


@dataclass
class Batch:
    """Examples padded on the right to one length.

    Attributes:
        input_ids, labels: int64 (B, T).
        visible: bool (B, 1, T, T), the attention rule; see ``collate``. None where the mask is made
            on the device.
        image_mask: bool (B, T), True at image tokens.
        pixel_values: float32 (sum of h * w, 3 * P * P), images in order.
        image_grid_hw: int64 (num_images, 2).
        image_ids: int32 (B, T), as in :class:`Example`.
        document_ids: int32 (B, T), likewise; None when every row is one sample.
        position_ids: int64 (B, T), counted from each document's start; None when that is the
            row's.
        real_tokens: tokens that are no padding.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    visible: torch.Tensor | None
    image_mask: torch.Tensor
    pixel_values: torch.Tensor
    image_grid_hw: torch.Tensor
    image_ids: torch.Tensor | None = None
    document_ids: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    real_tokens: int = 0

    def to(self, device: torch.device | str) -> "Batch":
        """Move the tensors in place; returns the batch."""
        for key, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, key, value.to(device, non_blocking=True))
        return self


class Tokeniser:
    """Samples to examples with a checkpoint's processor.

    Args:
        processor: the checkpoint's.
        max_length: most tokens of an example, image tokens counted as what they are.
    """

    def __init__(self, processor: VoRAProcessor, max_length: int) -> None:
        self.processor = processor
        self.max_length = max_length
        self.labeller = Labeller(processor)
        #: Tokens with which the template asks for an answer, if it has any.
        self.opening = self.labeller.opening

    def __call__(self, sample: Sample) -> Example:
        """Tokenise a sample.

        Raises:
            SampleError: it has no answer, an empty one, an image without a place or a place
                without an image, an image that cannot be cut into patches, or is too long.
        """
        answers = [m for m in sample.messages if m["role"] == "assistant"]
        if not answers or any(not m["content"] for m in answers):
            raise SampleError("The conversation has no answer, or an empty one.")
        labelled = self.labeller(sample.messages)
        try:
            features = self.processor.image_processor(sample.images, return_tensors="pt")
        except ImageError as error:
            raise SampleError(str(error), "image unusable") from error
        counts = features["image_grid_hw"].prod(-1) // self.processor.settings.merge_size**2
        try:
            ids = self.processor.expand(labelled.ids, counts.tolist())
        except ValueError as error:
            raise SampleError(str(error)) from error
        if len(ids) > self.max_length:
            raise TooLongError(
                f"The sample has {len(ids)} tokens; the recipe's max_length is {self.max_length}."
            )
        input_ids = torch.tensor(ids)
        is_image = input_ids == self.processor.image_token_id
        spans = spans_from_lengths(is_image, counts.tolist())
        return Example(
            input_ids=input_ids,
            labels=torch.where(self._learned(labelled, counts) & ~is_image, input_ids, IGNORE),
            image_ids=block_ids(len(ids), spans),
            pixel_values=features["pixel_values"],
            image_grid_hw=features["image_grid_hw"],
        )

    def _learned(self, labelled: Labelled, counts: torch.Tensor) -> torch.Tensor:
        """Which tokens are targets, bool (T,), images with as many tokens as they have."""
        short = torch.tensor(labelled.ids)
        learned = torch.zeros(len(short), dtype=torch.bool)
        for first, behind in labelled.learned:
            learned[first:behind] = True
        repeats = torch.ones(len(short), dtype=torch.int64)
        repeats[short == self.processor.image_token_id] = counts
        return learned.repeat_interleave(repeats)


def collate(examples: Sequence[Example], pad_id: int | None, dense: bool = True) -> Batch:
    """Pad examples to a batch.

    The attention rule never lets a token see padding on its right, and what padding itself sees
    does not matter, so ``visible`` needs no padding mask. Of packed examples, a token sees its own
    sample alone.

    Args:
        examples: any number, with or without images, packed or not.
        pad_id: token that fills up; any does, since padding is neither seen nor learned.
        dense: make ``visible``.
    """
    length = max(len(example.input_ids) for example in examples)

    def padded(rows: list[torch.Tensor], fill: int) -> torch.Tensor:
        out = rows[0].new_full((len(rows), length), fill)
        for index, row in enumerate(rows):
            out[index, : len(row)] = row
        return out

    image_ids = padded([example.image_ids for example in examples], -1)
    visible = dense_mask(image_ids, image_ids) if dense else None
    document_ids = position_ids = None
    real_tokens = sum(len(example.input_ids) for example in examples)
    if any(example.document_ids is not None for example in examples):
        rows = [
            torch.zeros_like(e.image_ids) if e.document_ids is None else e.document_ids
            for e in examples
        ]
        document_ids = padded(rows, -1)
        position_ids = document_positions(document_ids)
        real_tokens = int((document_ids >= 0).sum())
        if visible is not None:
            visible &= document_ids[:, :, None] == document_ids[:, None, :]
    return Batch(
        input_ids=padded([example.input_ids for example in examples], pad_id or 0),
        labels=padded([example.labels for example in examples], IGNORE),
        visible=None if visible is None else visible[:, None],
        image_mask=image_ids >= 0,
        pixel_values=torch.cat([example.pixel_values for example in examples]),
        image_grid_hw=torch.cat([example.image_grid_hw for example in examples]),
        image_ids=image_ids,
        document_ids=document_ids,
        position_ids=position_ids,
        real_tokens=real_tokens,
    )


def document_positions(document_ids: torch.Tensor) -> torch.Tensor:
    """Positions that begin anew with every document.

    Args:
        document_ids: int (B, T), documents one after another, -1 at padding.

    Returns:
        int64 (B, T).
    """
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = torch.where(begins, index, 0).cummax(dim=1).values
    return index - starts


class BatchSource(torch.utils.data.Dataset[list[Batch]]):
    """Whole optimizer steps by number: what a run sees depends on its seed and the step alone.

    Args:
        samples: where they come from.
        tokeniser: turns them into examples.
        batch_size: samples of a step.
        micro_batch_size: samples of one forward pass.
        steps: number of steps.
        rank, world_size: this process's share of every step.
    """

    def __init__(
        self,
        samples: SampleSource,
        tokeniser: Tokeniser,
        *,
        batch_size: int,
        micro_batch_size: int,
        steps: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.samples, self.tokeniser, self.steps = samples, tokeniser, steps
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[Batch]:
        """Micro-batches of one step, samples of like length together."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        indices = range(step * self.batch_size, (step + 1) * self.batch_size)
        mine = [self.tokeniser(self.samples[i]) for i in indices[self.rank :: self.world_size]]
        mine.sort(key=lambda example: len(example.input_ids))
        pad_id = self.tokeniser.processor.tokenizer.pad_token_id
        groups = np.arange(0, len(mine), self.micro_batch_size)
        return [collate(mine[g : g + self.micro_batch_size], pad_id) for g in groups]
