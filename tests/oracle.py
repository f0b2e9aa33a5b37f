"""VoRA once more, as plainly as it can be written: the judge of every other implementation.

Nothing here comes from ``model_plugin``. The oracle reads a checkpoint's files itself, makes the
pixels with PIL and numpy, embeds them with four tensor operations, builds the dense attention
mask from its definition, and runs one unmodified transformers LLM in fp32 over the whole sequence
for every position and for every generated token. No KV cache, no batching, no padding.

Each quirk of the released models can be switched off by a keyword, so that a test can show that
its verdict depends on it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PLACEHOLDER = re.compile(r"<image>|<\|image_pad\|>")
# Keys of a VoRA config that are no business of the LLM inside.
VORA_KEYS = frozenset(
    {
        "architectures",
        "auto_map",
        "aux_vision",
        "dtype",
        "image_size",
        "image_token_id",
        "llm",
        "llm_model_type",
        "lora",
        "model_type",
        "patch_size",
        "position_mode",
        "reuse_aux_vision_embedding_layers",
        "skip_aux_cls",
        "spatial_merge_size",
        "torch_dtype",
        "transformers_version",
        "vision_attention_mask",
        "vision_embedding",
        "vision_embedding_intermediate_size",
    }
)

Array = npt.NDArray[np.float32]
Images = Sequence[Image.Image]


class Oracle:
    """A VoRA checkpoint in fp32, computed the slow and obvious way.

    Args:
        path: a checkpoint folder in any layout (merged, with LoRA, sharded, ``.bin``).
        resolution: "fixed" or "native" instead of what ``preprocessor_config.json`` says.
        position_mode: "released" or "interpolate" instead of what ``config.json`` says.
        causal: True drops the bidirectional spans (a flipped quirk).
        biases: False drops the biases that a plain LLM of the same config does not have.
        padding: "centre" is right; "corner" and "white" are flipped quirks.
        lora: False ignores lora_A/lora_B.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        resolution: Literal["fixed", "native"] | None = None,
        position_mode: Literal["released", "interpolate"] | None = None,
        causal: bool | None = None,
        biases: bool = True,
        padding: Literal["centre", "corner", "white"] = "centre",
        lora: bool = True,
    ) -> None:
        self.path = Path(path)
        self.config: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        preprocessor = self.path / "preprocessor_config.json"
        self.preprocessor: dict[str, Any] = (
            json.loads(preprocessor.read_text()) if preprocessor.exists() else {}
        )
        self.resolution = resolution or self.preprocessor.get("resolution", "fixed")
        self.position_mode = position_mode or self.config.get("position_mode", "released")
        self.causal = (
            self.config.get("vision_attention_mask", "bidirectional") == "default"
            if causal is None
            else causal
        )
        self.padding = padding
        self.patch: int = self.config["patch_size"]
        self.merge: int = self.config.get("spatial_merge_size", 1)
        self.tokenizer = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        self.tensors = merge_lora(read_weights(self.path), lora)
        self.llm = build_llm(self.config, self.tensors, biases)

    # ---- text -------------------------------------------------------------------------------

    def chunks(self, prompt: str) -> list[list[int]]:
        """Token ids of the texts around the image placeholders, each tokenised on its own."""
        return [self._encode(chunk) for chunk in PLACEHOLDER.split(prompt)]

    def _encode(self, text: str, control: bool = True) -> list[int]:
        self.tokenizer.encode_special_tokens = not control
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def chat_chunks(self, messages: Sequence[dict[str, Any]]) -> list[list[int]]:
        """ChatML with "You are a helpful assistant." by default; text never becomes control.

        Content is a string or a list of ``{"type": "text", "text": ...}`` and
        ``{"type": "image"}`` (or ``image_url``) parts. Ends with the assistant's turn opened.
        """
        start, end = self._encode("<|im_start|>")[0], self._encode("<|im_end|>")[0]
        if messages[0]["role"] != "system":
            messages = [
                {"role": "system", "content": "You are a helpful assistant."},
                *messages,
            ]
        out: list[list[int]] = [[]]
        for message in messages:
            out[-1].append(start)
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            text = message["role"] + "\n"
            for part in parts:
                if part["type"] == "text":
                    text += part["text"]
                else:
                    out[-1] += self._encode(text, control=False)
                    out.append([])
                    text = ""
            out[-1] += self._encode(text, control=False)
            out[-1].append(end)
            out[-1] += self._encode("\n", control=False)
        out[-1].append(start)
        out[-1] += self._encode("assistant\n", control=False)
        return out

    # ---- pixels -----------------------------------------------------------------------------

    def pixels(self, image: Image.Image) -> Array:
        """Normalised float32 (3, H, W), both sides multiples of patch_size * merge."""
        image = image.convert("RGB")
        image = self._native(image) if self.resolution == "native" else self._fixed(image)
        scale = self.preprocessor.get("rescale_factor", 1 / 255)
        mean = np.asarray(self.preprocessor.get("image_mean", CLIP_MEAN), np.float64)
        std = np.asarray(self.preprocessor.get("image_std", CLIP_STD), np.float64)
        values = (np.asarray(image, np.float64) * scale - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1).astype(np.float32))

    def _resample(self) -> Image.Resampling:
        return Image.Resampling(self.preprocessor.get("resample", Image.Resampling.BICUBIC))

    def _native(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        unit = self.patch * self.merge
        low = self.preprocessor.get("min_pixels", 56 * 56)
        high = self.preprocessor.get("max_pixels", 14 * 14 * 50 * 80)
        if min(width, height) < unit or max(width, height) > 200 * min(width, height):
            raise ValueError(f"image of {width}x{height} pixels cannot be resized")
        # Python's round: a half goes to the even neighbour.
        new_h, new_w = round(height / unit) * unit, round(width / unit) * unit
        if new_h * new_w > high:
            shrink = math.sqrt(height * width / high)
            new_h = math.floor(height / shrink / unit) * unit
            new_w = math.floor(width / shrink / unit) * unit
        elif new_h * new_w < low:
            grow = math.sqrt(low / (height * width))
            new_h = math.ceil(height * grow / unit) * unit
            new_w = math.ceil(width * grow / unit) * unit
        return _resize(image, (new_w, new_h), self._resample())

    def _fixed(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = max(width, height)
        square = Image.new("RGB", (side, side), "white" if self.padding == "white" else "black")
        left, top = ((side - width) // 2, (side - height) // 2)
        square.paste(image, (0, 0) if self.padding == "corner" else (left, top))
        size = self._size(self.preprocessor.get("size", self.config["image_size"]))
        crop = self._size(self.preprocessor.get("crop_size", size))
        square = _resize(square, (size, size), self._resample())
        offset = (size - crop) // 2
        return square.crop((offset, offset, offset + crop, offset + crop))

    @staticmethod
    def _size(value: int | dict[str, int]) -> int:
        if isinstance(value, int):
            return value
        return value["shortest_edge"] if "shortest_edge" in value else value["height"]

    # ---- embedding --------------------------------------------------------------------------

    def embed_image(self, pixels: Array) -> torch.Tensor:
        """LLM tokens (h * w / merge**2, hidden_size) of pixels (3, H, W)."""
        weights = self.tensors
        name = "vision_embedding.patchifier.proj"
        x = F.conv2d(
            torch.from_numpy(pixels)[None],
            weights[f"{name}.weight"],
            weights[f"{name}.bias"],
            stride=self.patch,
        )[0]  # (C, h, w)
        mean_square = x.pow(2).mean(0, keepdim=True)
        x = x * torch.rsqrt(mean_square + self.config["rms_norm_eps"])
        x = x * weights["vision_embedding.patchifier.norm.weight"][:, None, None]
        x = x + self._positions(x.shape[1], x.shape[2])
        if self.merge > 1:
            x = F.pixel_unshuffle(x, self.merge)  # (C m m, h/m, w/m): channel outermost
        return x.flatten(1).T @ weights["vision_embedding.out_proj.weight"].T

    def _positions(self, height: int, width: int) -> torch.Tensor:
        table = self.tensors["vision_embedding.pos_embed"][0]  # (G*G, C)
        side = math.isqrt(table.shape[0])
        if self.position_mode == "released" and height * width <= side * side:
            return table[: height * width].T.reshape(-1, height, width)
        square = table.T.reshape(1, -1, side, side)
        return F.interpolate(square, (height, width), mode="bilinear", align_corners=False)[0]

    # ---- the model --------------------------------------------------------------------------

    def embed(self, chunks: list[list[int]], images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        """Input embeddings (T, hidden) and the dense mask (T, T), True where k is visible to q."""
        if len(chunks) != len(images) + 1:
            raise ValueError(f"{len(chunks) - 1} placeholders but {len(images)} images")
        table = self.tensors["llm.model.embed_tokens.weight"]
        parts: list[torch.Tensor] = []
        owner: list[int] = []  # which image a position belongs to; -1 for text
        for index, ids in enumerate(chunks):
            parts.append(table[torch.tensor(ids, dtype=torch.long)])
            owner += [-1] * len(ids)
            if index < len(images):
                tokens = self.embed_image(self.pixels(images[index]))
                parts.append(tokens)
                owner += [index] * len(tokens)
        who = torch.tensor(owner)
        position = torch.arange(len(owner))
        mask = position[None, :] <= position[:, None]
        if not self.causal:
            mask = mask | ((who[:, None] == who[None, :]) & (who[None, :] >= 0))
        return torch.cat(parts), mask

    @torch.no_grad()
    def _forward(self, embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        logits = self.llm(
            inputs_embeds=embeds[None], attention_mask=bias[None, None], use_cache=False
        ).logits[0]
        return torch.log_softmax(logits.float(), dim=-1)

    def logprobs(self, prompt: str | list[list[int]], images: Images = ()) -> Array:
        """Log-probabilities (T, vocab) of the next token at every position, images expanded."""
        chunks = self.chunks(prompt) if isinstance(prompt, str) else prompt
        return cast(Array, self._forward(*self.embed(chunks, images)).numpy())

    def greedy(
        self,
        prompt: str | list[list[int]],
        images: Images = (),
        max_new_tokens: int = 12,
        stop: Sequence[int] = (),
    ) -> list[int]:
        """The likeliest continuation, the whole sequence computed anew for each token."""
        chunks = self.chunks(prompt) if isinstance(prompt, str) else prompt
        out: list[int] = []
        for _ in range(max_new_tokens):
            full = [*chunks[:-1], chunks[-1] + out]
            out.append(int(self._forward(*self.embed(full, images))[-1].argmax()))
            if out[-1] in stop:
                break
        return out


# ---- weights ------------------------------------------------------------------------------------


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Rows first, then columns, as Pillow up to 12 resizes; Pillow 13 chooses the order."""
    return image.resize((size[0], image.height), resample).resize(size, resample)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the folder's weight files, as float32."""
    files = sorted(path.glob("*.safetensors"))
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(load_file(file))
    if not files:
        for file in sorted(path.glob("*.bin")):
            tensors.update(torch.load(file, map_location="cpu", weights_only=True))
    return {name: tensor.float() for name, tensor in tensors.items()}


def merge_lora(tensors: dict[str, torch.Tensor], apply: bool = True) -> dict[str, torch.Tensor]:
    """W + B @ A wherever a layer has both (no alpha: scale 1); biases as they are."""
    merged = {k: v for k, v in tensors.items() if ".lora_" not in k}
    for name, a in tensors.items():
        if apply and name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            b = tensors[f"{layer}.lora_B.weight"]
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + b @ a
    return merged


def build_llm(config: dict[str, Any], tensors: dict[str, torch.Tensor], biases: bool) -> Any:
    """A plain transformers LLM of the flat config, its linears given the biases that exist."""
    kind = config.get("llm_model_type", "qwen2")
    keys = {k: v for k, v in config.items() if k not in VORA_KEYS}
    llm_config = AutoConfig.for_model(kind, **keys)
    llm = AutoModelForCausalLM.from_config(
        llm_config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    state = {k.removeprefix("llm."): v for k, v in tensors.items() if k.startswith("llm.")}
    expected = set(llm.state_dict())
    for name in sorted(set(state) - expected):
        if not name.endswith("_proj.bias"):
            raise ValueError(f"unknown tensor llm.{name}")
        tensor = state.pop(name)
        if biases:
            llm.get_submodule(name.removesuffix(".bias")).bias = torch.nn.Parameter(tensor)
            state[name] = tensor
    if config.get("tie_word_embeddings") and "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    llm.load_state_dict(state, strict=True)
    return llm
