"""The attention rule: its two forms against the definition and against each other."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from model_plugin.errors import SplitSpanError
from model_plugin.spans import (
    Segment,
    Span,
    block_ids,
    dense_mask,
    spans_from_lengths,
    split_segments,
)

# A sequence as its parts: 0 is one text token, n > 0 an image of n tokens.
parts = st.lists(st.integers(0, 7), min_size=1, max_size=12)


def lay_out(pieces: list[int]) -> tuple[int, list[Span]]:
    """Length and inclusive spans of a sequence of parts."""
    length, spans = 0, []
    for piece in pieces:
        if piece:
            spans.append((length, length + piece - 1))
        length += piece or 1
    return length, spans


def visible(query: int, key: int, spans: list[Span]) -> bool:
    """The definition."""
    return key <= query or any(s <= query <= e and s <= key <= e for s, e in spans)


def boundaries(length: int, spans: list[Span]) -> list[int]:
    """Positions at which a step may end: those that cut no image."""
    return [p for p in range(length + 1) if not any(s < p <= e for s, e in spans)]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.T / q.shape[1] ** 0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def attend_segment(
    segment: Segment, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """What a stock kernel does with a segment: causal is aligned to the last key."""
    keys, queries = segment.kv_len, len(segment)
    mask = torch.ones(queries, keys, dtype=torch.bool)
    if segment.causal:
        mask = mask.tril(keys - queries)
    return attend(q[segment.start : segment.end], k[:keys], v[:keys], mask)


def random_qkv(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, length, 4, generator=generator, dtype=torch.float64)
    return q, k, v


@given(parts)
def test_dense_mask_is_the_definition(pieces: list[int]) -> None:
    length, spans = lay_out(pieces)
    ids = block_ids(length, spans)
    mask = dense_mask(ids, ids)
    assert mask.dtype == torch.bool
    expected = [[visible(q, k, spans) for k in range(length)] for q in range(length)]
    assert mask.tolist() == expected


@given(parts, st.data())
def test_dense_mask_of_later_queries(pieces: list[int], data: st.DataObject) -> None:
    length, spans = lay_out(pieces)
    ids = block_ids(length, spans)
    offset = data.draw(st.integers(0, length))
    assert dense_mask(ids[offset:], ids, offset).equal(dense_mask(ids, ids)[offset:])


def test_dense_mask_of_a_batch() -> None:
    ids = torch.stack([block_ids(4, [(1, 2)]), block_ids(4, [])])
    mask = dense_mask(ids, ids)
    assert mask.shape == (2, 4, 4)
    assert mask[0, 1, 2]
    assert not mask[1, 1, 2]


@given(parts, st.data())
def test_segments_cover_the_queries_and_see_what_the_rule_says(
    pieces: list[int], data: st.DataObject
) -> None:
    length, spans = lay_out(pieces)
    end = data.draw(st.sampled_from(boundaries(length, spans)))
    start = data.draw(st.integers(0, end))  # a cached prefix may end anywhere, inside an image too
    segments = split_segments(start, end, spans)
    assert [q for s in segments for q in range(s.start, s.end)] == list(range(start, end))
    assert all(len(s) > 0 for s in segments)
    for segment in segments:
        for q in range(segment.start, segment.end):
            last = q + 1 if segment.causal else segment.kv_len
            assert list(range(last)) == [k for k in range(length) if visible(q, k, spans)]


@given(parts, st.data())
def test_segments_compute_dense_attention(pieces: list[int], data: st.DataObject) -> None:
    """However the sequence is cut into steps, segment-wise attention is dense attention."""
    length, spans = lay_out(pieces)
    q, k, v = random_qkv(length)
    ids = block_ids(length, spans)
    dense = attend(q, k, v, dense_mask(ids, ids))
    cuts = data.draw(st.sets(st.sampled_from(boundaries(length, spans))))
    steps = itertools.pairwise(sorted({0, length} | cuts))
    segments = [s for start, end in steps for s in split_segments(start, end, spans)]
    whole = torch.cat([attend_segment(s, q, k, v) for s in segments])
    assert torch.allclose(whole, dense, atol=1e-12)


@given(parts, st.data())
def test_after_a_cached_prefix_the_rest_is_the_same(pieces: list[int], data: st.DataObject) -> None:
    length, spans = lay_out(pieces)
    q, k, v = random_qkv(length)
    ids = block_ids(length, spans)
    start = data.draw(st.integers(0, length - 1))
    rest = torch.cat([attend_segment(s, q, k, v) for s in split_segments(start, length, spans)])
    assert torch.allclose(rest, attend(q, k, v, dense_mask(ids, ids))[start:], atol=1e-12)


@given(parts)
def test_causal_attention_is_not_the_rule(pieces: list[int]) -> None:
    """The control: with an image of two tokens or more, plain causal attention is different."""
    length, spans = lay_out(pieces)
    assume(any(e > s for s, e in spans))
    q, k, v = random_qkv(length)
    ids = block_ids(length, spans)
    causal = attend(q, k, v, torch.ones(length, length, dtype=torch.bool).tril())
    assert not torch.allclose(causal, attend(q, k, v, dense_mask(ids, ids)), atol=1e-6)


@given(parts, st.data())
def test_a_partly_scheduled_image_raises(pieces: list[int], data: st.DataObject) -> None:
    length, spans = lay_out(pieces)
    inside = [p for p in range(length + 1) if p not in boundaries(length, spans)]
    assume(inside)
    end = data.draw(st.sampled_from(inside))
    start = data.draw(st.integers(0, end - 1))
    with pytest.raises(SplitSpanError, match=f"up to token {end - 1}"):
        split_segments(start, end, spans)


def test_segments_by_example() -> None:
    spans = [(2, 4), (5, 5), (8, 9)]
    assert split_segments(0, 12, spans) == [
        Segment(0, 2, causal=True),
        Segment(2, 5, causal=False),
        Segment(5, 6, causal=False),
        Segment(6, 8, causal=True),
        Segment(8, 10, causal=False),
        Segment(10, 12, causal=True),
    ]
    assert split_segments(3, 7, spans)[0] == Segment(3, 5, causal=False)
    assert split_segments(10, 11, spans) == [Segment(10, 11, causal=True)]
    assert split_segments(5, 5, spans) == []


@given(parts)
def test_spans_from_lengths_keeps_adjacent_images_apart(pieces: list[int]) -> None:
    length, spans = lay_out(pieces)
    mask = block_ids(length, spans) >= 0
    assert spans_from_lengths(mask, [p for p in pieces if p]) == spans


def test_spans_from_lengths_refuses_what_does_not_fit() -> None:
    mask = torch.tensor([False, True, True, False, True])
    with pytest.raises(ValueError, match="3 image tokens in the sequence, 2 in the images"):
        spans_from_lengths(mask, [2])
    with pytest.raises(ValueError, match="image at token 1 is interrupted"):
        spans_from_lengths(mask, [3])
