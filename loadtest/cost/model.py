"""What a request should cost, on paper: FLOPs, bytes and memory from a checkpoint's configs.

A multiply-add counts as two operations. Element-wise work, norms and softmax are left out: they are
below one per cent of a prefill and cost bandwidth, not arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vora_core.geometry import ImageSettings

Size = tuple[int, int]


@dataclass(frozen=True)
class Decoder:
    """An LLM's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool

    @property
    def block_params(self) -> int:
        """Weights of the linear layers of all blocks."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_params(self) -> int:
        """Weights of the output matrix."""
        return self.hidden * self.vocab

    @property
    def kv_values(self) -> int:
        """Values of keys and values for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Tower:
    """A vision transformer's sizes; ``connector`` and ``merge`` are what leads to the LLM."""

    hidden: int
    layers: int
    intermediate: int
    patch: int
    gated: bool
    connector: int
    window_tokens: int | None = None
    full_layers: int | None = None

    @property
    def block_params(self) -> int:
        """Weights of the linear layers of all blocks."""
        wide = (3 if self.gated else 2) * self.hidden * self.intermediate
        return self.layers * (4 * self.hidden**2 + wide)


@dataclass(frozen=True)
class ModelCost:
    """What a checkpoint costs to serve.

    Args:
        family: ``vora``, ``llava`` or ``qwen2_5_vl``.
        decoder, tower: sizes; no tower for VoRA.
        embedder: weights of the patch embedding (and VoRA's projection).
        side: of the square that images become, in pixels; None at native resolution.
        patch, merge: patch side in pixels, and patches per token in each direction.
        whole_spans: whether image tokens see all of their image.
        params: weights on disk, counted in its files.
        weight_bytes: of its files.
        random: whether its weights are random.
        min_pixels, max_pixels: bounds at native resolution.
    """

    family: str
    decoder: Decoder
    tower: Tower | None
    embedder: int
    side: int | None
    patch: int
    merge: int
    whole_spans: bool
    params: int
    weight_bytes: int
    random: bool
    min_pixels: int = 0
    max_pixels: int = 1 << 62

    @property
    def images(self) -> ImageSettings:
        """How images become patches.

        At native resolution Qwen2.5-VL computes sizes as VoRA does.
        """
        if self.side is not None:
            return ImageSettings(image_size=self.side, patch_size=self.patch, merge_size=self.merge)
        return ImageSettings(
            resolution="native",
            patch_size=self.patch,
            merge_size=self.merge,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    def image_tokens(self, size: Size) -> int:
        """Tokens that an image of ``size`` pixels takes in the LLM."""
        return self.images.num_tokens(*size)

    def patches(self, size: Size) -> int:
        """Patches of an image of ``size`` pixels."""
        h, w = self.images.grid(*size)
        return h * w

    def prefill_flops(self, text: int, images: Sequence[Size] = ()) -> float:
        """Operations until the first token: vision, LLM over the whole prompt, one output row.

        Args:
            text: tokens of text, template included.
            images: sizes in pixels.
        """
        tokens = [self.image_tokens(size) for size in images]
        total = text + sum(tokens)
        decoder = self.decoder
        pairs = total * (total + 1) / 2
        if self.whole_spans:
            pairs += sum(n * (n - 1) / 2 for n in tokens)
        attention = 4 * decoder.layers * decoder.heads * decoder.head_dim * pairs
        linear = 2 * decoder.block_params * total + 2 * decoder.head_params
        return linear + attention + sum(self.vision_flops(size) for size in images)

    def vision_flops(self, size: Size) -> float:
        """Operations before an image's tokens enter the LLM."""
        patches = self.patches(size)
        flops = 2.0 * 3 * self.patch**2 * self._width() * patches
        if self.tower is None:
            return flops + 2 * self._width() * self.decoder.hidden * patches
        tower = self.tower
        seen = patches * patches
        windowed = patches * min(patches, tower.window_tokens or patches)
        full = tower.layers if tower.full_layers is None else tower.full_layers
        pairs = full * seen + (tower.layers - full) * windowed
        flops += 2 * tower.block_params * patches + 4 * tower.hidden * pairs
        return flops + 2 * tower.connector * patches / self.merge**2

    def decode_bytes(self, context: int, batch: int = 1, width: int = 2) -> float:
        """Bytes read for one step of decoding ``batch`` sequences of ``context`` tokens."""
        weights = self.decoder.block_params + self.decoder.head_params
        return width * (weights + batch * context * self.decoder.kv_values)

    def decode_flops(self, context: int, batch: int = 1) -> float:
        """Operations of one step of decoding."""
        decoder = self.decoder
        attention = 4 * decoder.layers * decoder.heads * decoder.head_dim * context
        return batch * (2.0 * (decoder.block_params + decoder.head_params) + attention)

    def kv_bytes(self, tokens: int, width: int = 2) -> float:
        """Bytes of keys and values of ``tokens`` tokens."""
        return float(width * tokens * self.decoder.kv_values)

    def _width(self) -> int:
        return self.embedder // (3 * self.patch**2)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> ModelCost:
        """The inverse of ``to_json``."""
        tower = value["tower"]
        parts = {
            "decoder": Decoder(**value["decoder"]),
            "tower": Tower(**tower) if tower else None,
        }
        return ModelCost(**(value | parts))
