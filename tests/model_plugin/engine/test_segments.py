"""The arithmetic of segments and of whole images, against the rule itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_plugin.engine.segments import SegmentBatch, segment_batch
from model_plugin.errors import SplitSpanError
from model_plugin.spans import Span, block_ids, dense_mask
from tests.model_plugin.engine.harness import needs_vllm


@st.composite
def sequences(draw: st.DrawFn) -> tuple[int, list[Span]]:
    """A length and spans in it, some of them adjacent."""
    spans: list[Span] = []
    position = 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 7)), max_size=4)):
        spans.append((position + gap, position + gap + length - 1))
        position += gap + length
    return position + draw(st.integers(0 if position else 1, 6)), spans


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, int, list[Span]]:
    """Start and end of a step's queries, and the spans; no span is cut at the end."""
    length, spans = draw(sequences())
    ends = [e for e in range(1, length + 1) if not any(a < e <= b for a, b in spans)]
    end = draw(st.sampled_from(ends))
    return draw(st.integers(0, end - 1)), end, spans


def visible(batch: SegmentBatch, request: int, start: int, end: int) -> npt.NDArray[np.bool_]:
    """What varlen kernels make of the segments of one request: bool (queries, keys)."""
    mask = np.zeros((end - start, end), dtype=bool)
    row = 0
    for i in np.flatnonzero(batch.request == request):
        queries = int(batch.query_start_loc[i + 1] - batch.query_start_loc[i])
        keys = int(batch.seq_lens[i])
        for query in range(queries):
            last = keys - queries + query + 1 if batch.causal[i] else keys
            mask[row, :last] = True
            row += 1
    assert row == end - start
    return mask


@given(st.lists(requests(), min_size=1, max_size=5))
def test_segments_give_the_dense_mask(batch: list[tuple[int, int, list[Span]]]) -> None:
    offsets = np.cumsum([0, *(end - start for start, end, _ in batch)])
    lengths = np.array([end for _, end, _ in batch])
    spans = {i: row for i, (_, _, row) in enumerate(batch)}
    segments = segment_batch(offsets, lengths, spans)
    # One query that is left of an image sees all of it causally.
    touched = any(b > max(a, start) and a < end for start, end, row in batch for a, b in row)
    assert (segments is not None) == touched
    if segments is None:
        return
    assert segments.query_start_loc[-1] == offsets[-1]
    assert segments.max_seq_len == max(segments.seq_lens)
    for index, (start, end, row) in enumerate(batch):
        ids = block_ids(end, [span for span in row if span[0] < end])
        rule = dense_mask(ids[start:], ids, offset=start)
        assert torch.equal(torch.from_numpy(visible(segments, index, start, end)), rule)


@given(requests(), st.data())
def test_cut_images_raise(request: tuple[int, int, list[Span]], data: st.DataObject) -> None:
    _, end, spans = request
    # The first token alone is a row of one query, which the scheduler keeps from being cut.
    inside = [e for a, b in spans for e in range(a + 1, b + 1) if 1 < e <= end]
    if not inside:
        return
    cut = data.draw(st.sampled_from(inside))
    with pytest.raises(SplitSpanError, match="in one step"):
        segment_batch(np.array([0, cut]), np.array([cut]), {0: spans})


def test_padding_rows_stay_empty() -> None:
    segments = segment_batch(np.array([0, 4, 4]), np.array([4, 0]), {0: [(1, 2)]})
    assert segments is not None
    assert segments.request.tolist() == [0, 0, 0, 1]
    assert segments.query_start_loc.tolist() == [0, 1, 3, 4, 4]
    assert segments.seq_lens.tolist() == [1, 3, 4, 0]


def test_requests_without_spans_may_be_left_out() -> None:
    assert segment_batch(np.array([0, 3, 4]), np.array([3, 9]), {}) is None


@needs_vllm
@pytest.mark.filterwarnings("default")
@given(sequences(), st.data())
def test_chunks_of_whole_images(sequence: tuple[int, list[Span]], data: st.DataObject) -> None:
    """However small the chunks, no image is cut, and nothing waits that could be scheduled."""
    from model_plugin.engine.scheduler import whole_spans

    length, spans = sequence
    start = data.draw(st.integers(0, length - 1))
    count = data.draw(st.integers(1, length - start))
    whole = whole_spans(start, count, spans)
    assert 0 <= whole <= count
    assert not any(a < start + whole <= b for a, b in spans if b >= start and whole)
    if whole < count:
        # One more token would begin, or go on in, an image that does not fit.
        assert any(a <= start + whole <= b and b >= start + count for a, b in spans)


@needs_vllm
@pytest.mark.filterwarnings("default")
def test_batches_without_image_queries_are_left_as_they_are() -> None:
    """Decoding beside images of the past takes the stock path, with vLLM's own metadata."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    from model_plugin.engine.attention_cpu import SpanCPUAttentionMetadataBuilder

    def batch(spans: dict[int, list[Span]] | None) -> CommonAttentionMetadata:
        return CommonAttentionMetadata(
            query_start_loc=torch.tensor([0, 1, 5], dtype=torch.int32),
            query_start_loc_cpu=torch.tensor([0, 1, 5], dtype=torch.int32),
            seq_lens=torch.tensor([40, 4], dtype=torch.int32),
            num_reqs=2,
            num_actual_tokens=5,
            max_query_len=4,
            max_seq_len=40,
            block_table_tensor=torch.tensor([[7, 8], [9, 0]], dtype=torch.int32),
            slot_mapping=torch.arange(5),
            mm_req_doc_ranges=spans,
        )

    builder = object.__new__(SpanCPUAttentionMetadataBuilder)
    decoding = batch({0: [(3, 30)], 1: []})
    assert builder.cut(decoding) is decoding
    cut = builder.cut(batch({0: [(3, 30)], 1: [(1, 2)]}))
    assert cut.num_reqs == 4
    assert cut.query_start_loc.tolist() == [0, 1, 2, 4, 5]
    assert cut.seq_lens.tolist() == [40, 1, 3, 4]
    assert cut.causal.tolist() == [1, 1, 0, 1]
    assert cut.causal.dtype == torch.int32
    assert cut.block_table_tensor.tolist() == [[7, 8], [9, 0], [9, 0], [9, 0]]
    assert (cut.max_query_len, cut.max_seq_len) == (2, 40)
    with pytest.raises(SplitSpanError, match="does not report image spans"):
        builder.cut(batch(None))
