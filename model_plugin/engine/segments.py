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
        causal: int32 (N,), 0 for image segments of several queries, 1 for the rest.
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
    """Cut a whole batch at its image spans, for kernels that take a causality per sequence.

    Args:
        query_start_loc: int (R + 1,), row of each request's first query of this step.
        seq_lens: int (R,), tokens of each request up to and including this step.
        spans: inclusive image spans of each request, by its index in the batch, ascending,
            counted from the request's first token. Requests without images may be left out.

    Returns:
        The segments, or None where causal attention is exact for every query of this step.

    Raises:
        SplitSpanError: an image is scheduled in part.
    """
    cut = _cut_requests(query_start_loc, seq_lens, spans)
    if not cut:
        return None
    pieces = np.ones(len(seq_lens), dtype=np.int64)
    for index, segments in cut.items():
        pieces[index] = len(segments)
    request = np.repeat(np.arange(len(seq_lens), dtype=np.int32), pieces)
    counts = np.diff(query_start_loc).astype(np.int32)[request]
    lengths = np.asarray(seq_lens, dtype=np.int32)[request]
    causal = np.ones(len(request), dtype=np.int32)
    first = np.cumsum(pieces) - pieces
    for index, segments in cut.items():
        here = slice(first[index], first[index] + len(segments))
        counts[here] = [len(segment) for segment in segments]
        lengths[here] = [segment.kv_len for segment in segments]
        causal[here] = [not _needs_its_image(segment) for segment in segments]
    return SegmentBatch(
        query_start_loc=_offsets(counts), seq_lens=lengths, request=request, causal=causal
    )


def image_batch(
    query_start_loc: npt.NDArray[np.integer],
    seq_lens: npt.NDArray[np.integer],
    spans: Mapping[int, Sequence[Span]],
) -> ImageBatch | None:
    """The image queries of a batch that causal attention gets wrong, packed.

    The arguments and errors are those of ``segment_batch``.

    Returns:
        The packed queries, or None where causal attention is exact for every query of this step.
    """
    cut = _cut_requests(query_start_loc, seq_lens, spans)
    images = [
        (index, int(query_start_loc[index]) + segment.start - segments[0].start, segment)
        for index, segments in cut.items()
        for segment in segments
        if _needs_its_image(segment)
    ]
    if not images:
        return None
    return ImageBatch(
        rows=np.concatenate(
            [np.arange(row, row + len(image), dtype=np.int32) for _, row, image in images]
        ),
        query_start_loc=_offsets([len(image) for _, _, image in images]),
        seq_lens=np.array([image.kv_len for _, _, image in images], dtype=np.int32),
        request=np.array([index for index, _, _ in images], dtype=np.int32),
    )


def _cut_requests(
    query_start_loc: npt.NDArray[np.integer],
    seq_lens: npt.NDArray[np.integer],
    spans: Mapping[int, Sequence[Span]],
) -> dict[int, list[Segment]]:
    """Segments of the requests that hold an image which causal attention gets wrong.

    Only rows with several queries are visited. Decoding and padding rows have one or none, and one
    query that sees the sequence up to itself is the same causally or not: the scheduler never
    starts an image that it does not finish.
    """
    cut = {}
    counts = np.diff(query_start_loc)
    for index in np.flatnonzero(counts > 1).tolist():
        if row := spans.get(index):
            end = int(seq_lens[index])
            segments = split_segments(end - int(counts[index]), end, row)
            if any(map(_needs_its_image, segments)):
                cut[index] = segments
    return cut


def _needs_its_image(segment: Segment) -> bool:
    """Whether causal attention would hide keys: an image of which several queries are left."""
    return not segment.causal and len(segment) > 1


def _offsets(counts: Sequence[int] | Int32Array) -> Int32Array:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
