"""A batch of requests as a batch of segments: the arithmetic that every device shares.

Attention kernels take a batch as query offsets, sequence lengths and block-table rows. Cutting
each request at its image spans (``model_plugin.spans.split_segments``) gives a longer batch of
virtual sequences that stock varlen paged kernels compute exactly: every segment shares its
request's block-table row, text is causal, an image is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_plugin.spans import Segment, Span, split_segments

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SegmentBatch:
    """Virtual sequences, in the order of the batch's query rows.

    Attributes:
        query_start_loc: int32 (N + 1,), row of each segment's first query; the last is their total.
        seq_lens: int32 (N,), keys that a segment's last query sees.
        request: int32 (N,), index of the request that each segment belongs to.
        causal: int32 (N,), 1 for causal segments, 0 for images.
    """

    query_start_loc: Int32Array
    seq_lens: Int32Array
    request: Int32Array
    causal: Int32Array

    @property
    def max_query_len(self) -> int:
        """Longest segment, in queries."""
        return int(np.diff(self.query_start_loc).max())

    @property
    def max_seq_len(self) -> int:
        """Longest sequence of keys."""
        return int(self.seq_lens.max())

    def images(self) -> ImageBatch | None:
        """The image segments as a batch of their own; None if causal attention does for all.

        A single query that sees a sequence up to itself is the same causally or not: what is left
        of an image after a prefix-cache hit may be that.
        """
        lengths = np.diff(self.query_start_loc)
        chosen = np.flatnonzero((self.causal == 0) & (lengths > 1))
        if not len(chosen):
            return None
        starts, counts = self.query_start_loc[chosen], lengths[chosen]
        first = np.cumsum(counts) - counts
        return ImageBatch(
            rows=np.repeat(starts - first, counts).astype(np.int32)
            + np.arange(counts.sum(), dtype=np.int32),
            query_start_loc=np.append(first, counts.sum()).astype(np.int32),
            seq_lens=self.seq_lens[chosen],
            request=self.request[chosen],
        )


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """The queries of a step that lie in images, packed: a batch for one non-causal launch.

    Attributes:
        rows: int32 (Q,), row of each packed query in the whole batch, ascending.
        query_start_loc: int32 (S + 1,), offsets into the packed queries.
        seq_lens: int32 (S,), keys that the queries of each segment see.
        request: int32 (S,), index of the request that each segment belongs to.
    """

    rows: Int32Array
    query_start_loc: Int32Array
    seq_lens: Int32Array
    request: Int32Array

    @property
    def max_query_len(self) -> int:
        """Longest segment, in queries."""
        return int(np.diff(self.query_start_loc).max())

    @property
    def max_seq_len(self) -> int:
        """Longest sequence of keys."""
        return int(self.seq_lens.max())

    @property
    def contiguous(self) -> tuple[int, int] | None:
        """First row and the row after the last, if the queries lie together."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        return (first, last + 1) if last - first + 1 == len(self.rows) else None


def segment_batch(
    query_start_loc: npt.NDArray[np.integer],
    seq_lens: npt.NDArray[np.integer],
    spans: Mapping[int, Sequence[Span]],
) -> SegmentBatch | None:
    """Cut a batch at its image spans.

    Args:
        query_start_loc: int (R + 1,), row of each request's first query of this step.
        seq_lens: int (R,), tokens of each request up to and including this step.
        spans: inclusive image spans of each request, by its index in the batch, ascending,
            counted from the request's first token. Requests without images may be left out.

    Returns:
        The segments, or None when no query of this step lies in an image: then the batch is plain
        causal attention, as it stands.

    Raises:
        SplitSpanError: an image is scheduled in part.
    """
    ends = seq_lens.tolist()
    offsets = query_start_loc.tolist()
    starts = [end - (b - a) for end, a, b in zip(ends, offsets, offsets[1:], strict=False)]
    pieces: list[tuple[int, Segment]] = []
    images = False
    for request, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if start == end:
            # A padding row; kernels take it as an empty sequence.
            pieces.append((request, Segment(start, end, causal=True)))
            continue
        for segment in split_segments(start, end, spans.get(request, ())):
            pieces.append((request, segment))
            images |= not segment.causal
    if not images:
        return None
    lengths = [0, *(len(segment) for _, segment in pieces)]
    return SegmentBatch(
        query_start_loc=np.cumsum(lengths, dtype=np.int32),
        seq_lens=np.array([segment.kv_len for _, segment in pieces], dtype=np.int32),
        request=np.array([request for request, _ in pieces], dtype=np.int32),
        causal=np.array([segment.causal for _, segment in pieces], dtype=np.int32),
    )
