"""The attention rule of VoRA, defined once (section 3.3 of the paper; one image is one span).

Key k is visible to query q when ``k <= q``, or when both lie in the same image. Two forms of it:

* ``dense_mask``: a boolean matrix, for training, the Hugging Face side and as an oracle;
* ``split_segments``: consecutive pieces of a request's queries that stock attention kernels compute
  exactly. An image token in span [s, e] sees exactly keys 0..e, and that is *non-causal attention
  over a sequence that ends at e*; text is causal attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model_plugin.errors import SplitSpanError

#: First and last token of an image, both included, counted from the start of the sequence.
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """Queries ``start <= q < end`` that see keys ``0 <= k < kv_len``, causally or all of them.

    A causal segment aligns its last query with its last key (``kv_len == end``), as varlen kernels
    do.
    """

    start: int
    end: int
    causal: bool

    @property
    def kv_len(self) -> int:
        """Number of keys that the segment's last query sees."""
        return self.end

    def __len__(self) -> int:
        return self.end - self.start


def spans_from_lengths(mask: torch.Tensor, lengths: Sequence[int]) -> list[Span]:
    """Spans of the images of one sequence.

    Args:
        mask: bool (T,), True at image tokens.
        lengths: tokens of each image, in order. They tell adjacent images apart.

    Returns:
        One inclusive span an image.

    Raises:
        ValueError: the lengths do not add up to the mask, or an image is interrupted by text.
    """
    positions = torch.nonzero(mask.cpu(), as_tuple=True)[0].tolist()
    if len(positions) != sum(lengths):
        raise ValueError(
            f"{len(positions)} image tokens in the sequence, {sum(lengths)} in the images."
        )
    spans: list[Span] = []
    taken = 0
    for length in lengths:
        start, end = positions[taken], positions[taken + length - 1]
        if end - start + 1 != length:
            raise ValueError(f"The image at token {start} is interrupted by text.")
        spans.append((start, end))
        taken += length
    return spans


def block_ids(
    length: int, spans: Sequence[Span], device: torch.device | None = None
) -> torch.Tensor:
    """Which image each token belongs to.

    Args:
        length: T.
        spans: inclusive spans, counted from token 0.
        device: where the result lies.

    Returns:
        int32 (T,): -1 for text, i for the i-th image.
    """
    ids = torch.full((length,), -1, dtype=torch.int32)
    for index, (start, end) in enumerate(spans):
        ids[start : end + 1] = index
    return ids.to(device)


def dense_mask(query_ids: torch.Tensor, key_ids: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """The rule as a matrix.

    Args:
        query_ids: int (..., Q), ``block_ids`` of the queries.
        key_ids: int (..., K), ``block_ids`` of all keys.
        offset: position of query 0 among the keys.

    Returns:
        bool (..., Q, K), True where the key is visible to the query.
    """
    num_queries, num_keys = query_ids.shape[-1], key_ids.shape[-1]
    device = query_ids.device
    query = torch.arange(offset, offset + num_queries, device=device)[:, None]
    key = torch.arange(num_keys, device=device)[None, :]
    same_image = (query_ids[..., :, None] == key_ids[..., None, :]) & (query_ids[..., :, None] >= 0)
    return (key <= query) | same_image


def split_segments(query_start: int, query_end: int, spans: Sequence[Span]) -> list[Segment]:
    """Cut the queries of one step into segments that stock kernels compute exactly.

    Queries before ``query_start`` have been computed; their keys and values are cached. A span
    that began there may end in this step: its cached part came from the same image and prefix, so
    the remaining tokens see it whole.

    Args:
        query_start: position of the first query of this step.
        query_end: position after the last.
        spans: inclusive spans of the sequence, ascending, disjoint.

    Returns:
        Consecutive segments that cover [query_start, query_end). Empty if there are no queries.

    Raises:
        SplitSpanError: a span starts in or before this step and ends after it, so its first tokens
            could not see its last.
    """
    segments: list[Segment] = []
    position = query_start
    for start, end in spans:
        if end < query_start or start >= query_end:
            continue
        if end >= query_end:
            raise SplitSpanError(
                f"The image at tokens {start}..{end} is scheduled only up to token "
                f"{query_end - 1}; its tokens attend to each other and must be computed in one "
                "step."
            )
        if start > position:
            segments.append(Segment(position, start, causal=True))
            position = start
        segments.append(Segment(position, end + 1, causal=False))
        position = end + 1
    if position < query_end:
        segments.append(Segment(position, query_end, causal=True))
    return segments
