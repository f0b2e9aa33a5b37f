"""Attention of an answer's tokens to the patches, from the Hugging Face side of the model.

vLLM's paged kernels never hold attention weights, so the model runs once more here, eagerly, over
prompt and answer. The rows of attention that are asked for are taken as each layer passes, so that
memory holds one layer's weights at a time.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from model_plugin import VoRAForCausalLM, VoRAProcessor
from model_plugin.errors import ConfigError, VoRAError
from model_plugin.images import ImageSettings, preprocess
from vora_serve.explain.teacher import TeacherView

Float = npt.NDArray[np.float32]
MAX_NEW_TOKENS = 64
#: Room for one layer's attention, all heads, in float32 and once more while it is normalised.
_MATRIX_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Explanation:
    """What came out.

    Attributes:
        answer: the text that is explained.
        tokens: its T tokens as text.
        spans: where each token is in ``answer``: (start, end), in characters.
        grids: (rows, columns) of each image's tokens.
        attention: float32 (T, L, N): for each token of the answer, in each of L layers, the share
            of attention (mean of all heads) that each of the N image tokens got from the position
            that chose the token; images one after another, row-major.
        similarity: for each block that has a counterpart in the teacher, how alike its image
            tokens are to the teacher's; None without a teacher.
        measure: ``cosine`` through the auxiliary heads of a pretraining checkpoint (equation 2),
            or ``cka``, linear centred kernel alignment, which needs no heads.
        likeness: with ``cosine``, float32 (blocks, N), the similarity of each image token.
    """

    answer: str
    tokens: list[str]
    spans: list[tuple[int, int]]
    grids: list[tuple[int, int]]
    attention: Float
    similarity: list[float] | None = None
    measure: str | None = None
    likeness: Float | None = None

    def of_image(self, index: int) -> Float:
        """(T, L, rows, columns) of one image."""
        sizes = [rows * columns for rows, columns in self.grids]
        start = sum(sizes[:index])
        part = self.attention[:, :, start : start + sizes[index]]
        return part.reshape(*part.shape[:2], *self.grids[index])

    def packed(self) -> dict[str, Any]:
        """For the playground: the weights in 16 bits each, which is a quarter of their text.

        ``weights`` is base64 of little-endian unsigned 16-bit integers, (T, L, N) in C order; with
        ``top``, (T, L), a weight is ``top * integer / 65535``.
        """
        top = self.attention.max(axis=2, initial=0)
        parts = self.attention / np.maximum(top, 1e-12)[:, :, None]
        integers = (parts * 65535 + 0.5).astype("<u2")
        return {
            "answer": self.answer,
            "tokens": self.tokens,
            "spans": self.spans,
            "layers": int(self.attention.shape[1]),
            "grids": self.grids,
            "top": top.round(8).tolist(),
            "weights": base64.b64encode(integers.tobytes()).decode("ascii"),
            "similarity": self.similarity,
            "measure": self.measure,
        }

    def as_json(self) -> dict[str, Any]:
        """For people's own programs: ``attention[token][layer][image]`` is a list of weights."""
        sizes = np.cumsum([rows * columns for rows, columns in self.grids])[:-1]
        attention = [
            [[part.round(6).tolist() for part in np.split(layer, sizes)] for layer in token]
            for token in self.attention
        ]
        return {
            "answer": self.answer,
            "tokens": self.tokens,
            "layers": int(self.attention.shape[1]),
            "grids": self.grids,
            "attention": attention,
            "similarity": self.similarity,
            "measure": self.measure,
        }


class Explainer:
    """A model to look into.

    Args:
        model: folder or hub id of a checkpoint, merged or of pretraining.
        teacher: folder or hub id of a vision transformer to compare with.
        dtype: of the weights; the checkpoint's where absent.
        device: where it runs.

    Raises:
        VoRAError: a checkpoint cannot be used.
    """

    def __init__(
        self,
        model: str | Path,
        teacher: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> None:
        self.model = VoRAForCausalLM.from_pretrained(
            model, attn_implementation="eager", dtype=dtype or "auto"
        )
        self.model = self.model.to(device).eval()
        self.device = device
        self.processor = VoRAProcessor.from_pretrained(model)
        self.teacher = (
            TeacherView(model, teacher, self.processor.settings, device) if teacher else None
        )

    @torch.no_grad()
    def explain(
        self,
        messages: list[dict[str, Any]],
        answer: str | None = None,
        max_values: int | None = None,
    ) -> Explanation:
        """Look at one answer.

        Args:
            messages: OpenAI-style, with at least one image (Pillow image, path or URL).
            answer: the text to explain; the model's own, greedy, where absent.
            max_values: most values of attention to return; an answer whose T tokens have more is
                explained only as far as they reach.

        Raises:
            VoRAError: there is no image, or an input does not fit.
        """
        inputs = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=True,
        )  # fmt: skip
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        prompt = inputs["input_ids"]
        if not bool(self.model.image_mask(prompt).any()):
            raise VoRAError("There is no image to look at.")
        said = self._answer(inputs) if answer is None else self._encode(answer)
        if not said:
            raise VoRAError("There is no answer to look at.")
        layers = list(self.model.llm.model.layers)
        if max_values is not None:
            of_a_token = len(layers) * int(self.model.image_mask(prompt).sum())
            said = said[: max(1, max_values // of_a_token)]
        ids = torch.cat([prompt, torch.tensor([said], device=prompt.device)], dim=1)
        if ids.shape[1] > self._limit:
            raise VoRAError(
                f"Prompt and answer have {ids.shape[1]} tokens; at most {self._limit} can be "
                "looked into."
            )
        # The position before a token is the one that chose it.
        rows = torch.arange(prompt.shape[1] - 1, ids.shape[1] - 1)
        columns = self.model.image_mask(ids)[0].nonzero()[:, 0]
        with _attention(layers, rows, columns) as weights, self._states(layers) as states:
            self.model(
                input_ids=ids,
                pixel_values=inputs["pixel_values"],
                image_grid_hw=inputs["image_grid_hw"],
                use_cache=False,
            )
        attention = torch.stack([weights[i] for i in range(len(layers))], dim=1)
        merge = self.model.config.spatial_merge_size
        grids = [(int(h) // merge, int(w) // merge) for h, w in inputs["image_grid_hw"].tolist()]
        result = {
            "answer": self.processor.tokenizer.decode(said),
            "tokens": [self.processor.tokenizer.decode([token]) for token in said],
            "spans": self._spans(said),
            "grids": grids,
            "attention": attention.float().cpu().numpy(),
        }
        if self.teacher is not None:
            seen = {index: state[0, columns] for index, state in states.items()}
            result |= self.teacher.compare(seen, inputs, merge)
        return Explanation(**result)

    @property
    def _limit(self) -> int:
        """Most tokens: what the model can count, and what one layer's attention has room for."""
        config = self.model.config
        room = math.isqrt(_MATRIX_BYTES // (2 * 4 * config.num_attention_heads))
        return min(int(config.max_position_embeddings), room)

    def _spans(self, said: list[int]) -> list[tuple[int, int]]:
        """(start, end) of each token in the text of all; a part of a character spans all of it."""
        decode = self.processor.tokenizer.decode
        ends = [len(decode(said[: index + 1])) for index in range(len(said))]
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def _encode(self, answer: str) -> list[int]:
        return list(self.processor.tokenizer.encode(answer, add_special_tokens=False))

    def _answer(self, inputs: dict[str, torch.Tensor]) -> list[int]:
        tokenizer = self.processor.tokenizer
        ends = {self.model.config.eos_token_id, tokenizer.eos_token_id} - {None}
        output = self.model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(ends) or None,
            pad_token_id=tokenizer.pad_token_id,
        )
        said: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        special = set(tokenizer.all_special_ids)
        while said and said[-1] in special:
            said.pop()
        return said

    @contextmanager
    def _states(self, layers: list[nn.Module]) -> Iterator[dict[int, torch.Tensor]]:
        if self.teacher is None:
            yield {}
            return
        from vora_serve.training.distill import captured

        wanted = list(range(min(len(layers), self.teacher.depth)))
        with captured(layers, wanted, "output") as states:
            yield states


def served_image(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """What reaches the model: the normalised pixels, made visible again."""
    pixels = preprocess(image, settings)
    mean, std = (np.asarray(v)[:, None, None] for v in (settings.image_mean, settings.image_std))
    rgb = ((pixels * std + mean) / settings.rescale_factor).round().clip(0, 255)
    return Image.fromarray(rgb.astype(np.uint8).transpose(1, 2, 0))


@contextmanager
def _attention(
    layers: list[nn.Module], rows: torch.Tensor, columns: torch.Tensor
) -> Iterator[dict[int, torch.Tensor]]:
    """Filled by a forward pass: layer to attention (rows, columns), the mean of all heads."""
    taken: dict[int, torch.Tensor] = {}

    def after(index: int, _: nn.Module, __: Any, output: Any) -> None:
        weights = output[1]
        if weights is None:
            raise ConfigError("This model does not give its attention away; load it eagerly.")
        taken[index] = weights[0][:, rows.to(weights.device)][:, :, columns].float().mean(0)

    handles = [
        layer.get_submodule("self_attn").register_forward_hook(partial(after, index))
        for index, layer in enumerate(layers)
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()
