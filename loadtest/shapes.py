"""Sizes of LLMs and vision towers that checkpoints are built in."""

from __future__ import annotations

from dataclasses import dataclass

from vora_core.errors import ConfigError


@dataclass(frozen=True)
class LLMShape:
    """A Qwen2 decoder.

    Args:
        hidden: width.
        layers: number of blocks.
        heads, kv_heads: query heads, and heads of keys and values.
        intermediate: width of the gated MLP.
        vocab: rows of the embedding.
        tied: whether the output matrix is the embedding.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    max_positions: int = 32768


@dataclass(frozen=True)
class TowerShape:
    """A vision transformer.

    Args:
        hidden, layers, heads, intermediate: as usual.
        image_size, patch_size: in pixels.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    image_size: int = 448
    patch_size: int = 14

    @property
    def tokens(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class Shape:
    """An LLM, the tower that a baseline puts in front of it, and the width of VoRA's embedder."""

    llm: LLMShape
    tower: TowerShape
    embedder: int


#: AIMv2-Huge's cost in SigLIP's architecture: its gated MLP of 4096 has as many weights as a plain
#: one of 6144.
AIMV2_HUGE = TowerShape(hidden=1536, layers=24, heads=12, intermediate=6144)

#: The LLMs are Qwen2.5's. "tiny" is nobody's: it runs end to end in minutes on two cores.
SHAPES: dict[str, Shape] = {
    "tiny": Shape(
        LLMShape(256, 4, 4, 2, 768, 2048, True, 4096),
        TowerShape(192, 6, 3, 768, image_size=224),
        embedder=192,
    ),
    "0.5b": Shape(LLMShape(896, 24, 14, 2, 4864, 151936, True), AIMV2_HUGE, 1536),
    "1.5b": Shape(LLMShape(1536, 28, 12, 2, 8960, 151936, True), AIMV2_HUGE, 1536),
    "3b": Shape(LLMShape(2048, 36, 16, 2, 11008, 151936, True), AIMV2_HUGE, 1536),
    "7b": Shape(LLMShape(3584, 28, 28, 4, 18944, 152064, False), AIMV2_HUGE, 1536),
}


def shape(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ConfigError: there is none.
    """
    try:
        return SHAPES[name.lower()]
    except KeyError:
        raise ConfigError(f"Unknown shape {name!r}; use one of {', '.join(SHAPES)}.") from None
