"""What a request should cost, on paper: FLOPs, bytes and memory from a checkpoint's configs.

A multiply-add counts as two operations. Element-wise work, norms and softmax are left out: they are
below one per cent of a prefill and cost bandwidth, not arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import UsageError

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
class Checkpoint:
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

    def image_tokens(self, size: Size) -> int:
        """Tokens that an image of ``size`` pixels takes in the LLM."""
        return self.patches(size) // self.merge**2

    def patches(self, size: Size) -> int:
        """Patches of an image of ``size`` pixels."""
        if self.side is not None:
            return (self.side // self.patch) ** 2
        step = self.patch * self.merge
        width, height = (max(step, round(side / step) * step) for side in size)
        scale = 1.0
        if width * height > self.max_pixels:
            scale = (self.max_pixels / (size[0] * size[1])) ** 0.5
            width, height = (max(step, int(side * scale / step) * step) for side in size)
        elif width * height < self.min_pixels:
            scale = (self.min_pixels / (size[0] * size[1])) ** 0.5
            width, height = (-int(-side * scale // step) * step for side in size)
        return (width // self.patch) * (height // self.patch)

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
    def from_json(value: dict[str, Any]) -> Checkpoint:
        """The inverse of ``to_json``."""
        tower = value["tower"]
        parts = {
            "decoder": Decoder(**value["decoder"]),
            "tower": Tower(**tower) if tower else None,
        }
        return Checkpoint(**(value | parts))


def describe_checkpoint(folder: Path) -> dict[str, Any]:
    """``read_checkpoint`` as plain values."""
    return read_checkpoint(folder).to_json()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's configs and the headers of its weight files.

    Raises:
        UsageError: a file is missing, or the model is of a family that this does not know.
    """
    config = _json(folder / "config.json")
    pixels = _json(folder / "preprocessor_config.json")
    params, size = _weights(folder)
    rest = {
        "params": params,
        "weight_bytes": size,
        "random": config.get("loadtest", {}).get("weights") == "random",
    }
    family = config.get("model_type")
    if family == "vora":
        native = pixels.get("resolution") == "native"
        patch = int(config.get("patch_size", 14))
        width = int(config.get("vision_embedding_intermediate_size", 1536))
        return Checkpoint(
            family="vora",
            decoder=_decoder(config),
            tower=None,
            embedder=3 * patch**2 * width,
            side=None if native else _side(pixels, int(config.get("image_size", 448))),
            patch=patch,
            merge=int(config.get("spatial_merge_size", 1)),
            whole_spans=config.get("vision_attention_mask", "bidirectional") == "bidirectional",
            min_pixels=int(pixels.get("min_pixels", 56 * 56)),
            max_pixels=int(pixels.get("max_pixels", 14 * 14 * 50 * 80)),
            **rest,
        )
    if family == "llava":
        vision = config["vision_config"]
        hidden, out = int(vision["hidden_size"]), int(config["text_config"]["hidden_size"])
        patch = int(vision["patch_size"])
        return Checkpoint(
            family="llava",
            decoder=_decoder(config["text_config"]),
            tower=Tower(
                hidden=hidden,
                layers=int(vision["num_hidden_layers"]),
                intermediate=int(vision["intermediate_size"]),
                patch=patch,
                gated=False,
                connector=hidden * out + out * out,
            ),
            embedder=3 * patch**2 * hidden,
            side=_side(pixels, int(vision["image_size"])),
            patch=patch,
            merge=1,
            whole_spans=False,
            **rest,
        )
    if family == "qwen2_5_vl":
        vision = config["vision_config"]
        hidden, out = int(vision["hidden_size"]), int(vision["out_hidden_size"])
        patch, merge = int(vision["patch_size"]), int(vision["spatial_merge_size"])
        wide = hidden * merge**2
        return Checkpoint(
            family="qwen2_5_vl",
            decoder=_decoder(config.get("text_config", config)),
            tower=Tower(
                hidden=hidden,
                layers=int(vision["depth"]),
                intermediate=int(vision["intermediate_size"]),
                patch=patch,
                gated=True,
                connector=wide * wide + wide * out,
                window_tokens=(int(vision["window_size"]) // patch) ** 2,
                full_layers=len(vision["fullatt_block_indexes"]),
            ),
            embedder=3 * patch**2 * hidden * int(vision.get("temporal_patch_size", 2)),
            side=None,
            patch=patch,
            merge=merge,
            whole_spans=False,
            min_pixels=int(pixels.get("min_pixels", 56 * 56)),
            max_pixels=int(pixels.get("max_pixels", 28 * 28 * 1280)),
            **rest,
        )
    raise UsageError(f"{folder} is a model of the family {family!r}, whose cost is not known here.")


def _decoder(config: dict[str, Any]) -> Decoder:
    heads = int(config["num_attention_heads"])
    return Decoder(
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        intermediate=int(config["intermediate_size"]),
        vocab=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _side(pixels: dict[str, Any], default: int) -> int:
    for key in ("crop_size", "size"):
        value = pixels.get(key)
        if isinstance(value, dict) and ("height" in value or "shortest_edge" in value):
            return int(value["height"] if "height" in value else value["shortest_edge"])
    return int(pixels.get("image_size", default))


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"{path.parent} has no {path.name}.") from None
    except ValueError:
        raise UsageError(f"{path} is not JSON.") from None
    return value


def _weights(folder: Path) -> tuple[int, int]:
    """Number of weights, by the headers of the safetensors files, and bytes of all files."""
    params = size = 0
    for file in sorted(folder.glob("*.safetensors")):
        size += file.stat().st_size
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for side in tensor["shape"]:
                    count *= side
                params += count
    if not size:
        raise UsageError(f"{folder} holds no safetensors files.")
    return params, size
