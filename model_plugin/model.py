"""The Hugging Face side of VoRA: training, reference and `generate`.

One plain transformers LLM, a patch embedder, and the attention rule as a dense mask. Parameters are
named as in the released layout (``llm.model.*``, ``llm.lm_head.*``, ``vision_embedding.*``).
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from model_plugin.checkpoint import Checkpoint
from model_plugin.config import VoRAConfig
from model_plugin.embedder import Patchifier, RMSNorm, VoRAVisionEmbedding
from model_plugin.errors import PlaceholderError
from model_plugin.spans import block_ids, dense_mask, spans_from_lengths


class VoRAForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only LLM that sees: tokens of an image attend to the whole of it (section 3.3).

    Args:
        config: the model's configuration. Its ``image_token_id`` must be set before images are
            given; ``from_pretrained`` takes it from the tokenizer where a checkpoint does not say.
    """

    config: VoRAConfig
    config_class = VoRAConfig
    base_model_prefix = "llm"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["Qwen2DecoderLayer", "LlamaDecoderLayer", "Qwen3DecoderLayer"]  # noqa: RUF012

    def __init__(self, config: VoRAConfig) -> None:
        super().__init__(config)
        self.llm = AutoModelForCausalLM.from_config(config.inner_config())
        for name in config.extra_biases or []:
            layer = self.llm.get_submodule(name)
            layer.bias = nn.Parameter(torch.zeros(layer.out_features))
        self.vision_embedding = VoRAVisionEmbedding(config)
        if config.tie_word_embeddings:
            self._tied_weights_keys = {"llm.lm_head.weight": "llm.model.embed_tokens.weight"}
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any
    ) -> "VoRAForCausalLM":
        """Load a checkpoint in any released layout, as a merged model.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            *args, **kwargs: as in transformers.

        Raises:
            CheckpointError: it is not a VoRA checkpoint, or tensors are unknown, missing or
                misshapen.
            ConfigError: its configuration is wrong.
        """
        hub = {
            key: kwargs[key]
            for key in ("revision", "cache_dir", "token", "local_files_only")
            if kwargs.get(key) is not None
        }
        checkpoint = Checkpoint.open(
            pretrained_model_name_or_path, config=kwargs.pop("config", None), **hub
        )
        checkpoint.check()
        config = checkpoint.config
        if checkpoint.layout == "pretraining":
            merged = dict(checkpoint.tensors())
            config.lora = (config.lora or {}) | {"r": -1}
            config.aux_vision = ""
            source, kwargs = None, {**kwargs, "state_dict": merged}
        else:
            source = checkpoint.path
        model: VoRAForCausalLM = super().from_pretrained(source, *args, config=config, **kwargs)
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, VoRAVisionEmbedding):
            nn.init.normal_(module.pos_embed, std=0.02)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Patchifier):
            return
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The LLM's token embedding."""
        embedding: nn.Module = self.llm.get_input_embeddings()
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's token embedding."""
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The LLM's output projection."""
        projection: nn.Module = self.llm.get_output_embeddings()
        return projection

    def image_token_counts(self, image_grid_hw: torch.Tensor | None) -> list[int]:
        """LLM tokens of each image of ``image_grid_hw``, int (num_images, 2)."""
        if image_grid_hw is None:
            return []
        merged = self.config.spatial_merge_size**2
        return [int(h) * int(w) // merged for h, w in image_grid_hw.tolist()]

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_grid_hw: torch.Tensor | None,
    ) -> torch.Tensor:
        """Token embeddings with the images in place of their placeholders.

        Args:
            input_ids: int (B, T), each image marked by as many ``image_token_id`` as it has tokens.
            pixel_values: (sum of h * w, 3 * P * P), all images of the batch in order, or None.
            image_grid_hw: int (num_images, 2), or None.

        Returns:
            (B, T, hidden_size).

        Raises:
            PlaceholderError: placeholders and image tokens differ in number.
        """
        embeds: torch.Tensor = self.get_input_embeddings()(input_ids)
        if pixel_values is None or image_grid_hw is None:
            return embeds
        tokens = self.vision_embedding(pixel_values, image_grid_hw).to(embeds.dtype)
        places = self.image_mask(input_ids)
        if int(places.sum()) != tokens.shape[0]:
            raise PlaceholderError(
                f"The prompts hold {int(places.sum())} image tokens, but the images make "
                f"{tokens.shape[0]}."
            )
        return embeds.masked_scatter(places[..., None].expand_as(embeds), tokens)

    def image_mask(self, input_ids: torch.Tensor) -> torch.Tensor:
        """bool (B, T), True at image tokens."""
        if self.config.image_token_id is None:
            return torch.zeros_like(input_ids, dtype=torch.bool)
        return input_ids == self.config.image_token_id

    def attention(
        self,
        input_ids: torch.Tensor,
        image_grid_hw: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """The attention rule for a batch that starts at its first token.

        Args:
            input_ids: int (B, T).
            image_grid_hw: int (num_images, 2), all images of the batch in order.
            attention_mask: int or bool (B, T), zero at padding, or None.

        Returns:
            bool (B, 1, T, T), True where a key is visible; or ``attention_mask`` where the rule is
            causal and transformers' own mask does.
        """
        counts = self.image_token_counts(image_grid_hw)
        if not counts or not self.config.is_mm_prefix_lm:
            return attention_mask
        batch, length = input_ids.shape
        mask = self.image_mask(input_ids)
        ids = torch.empty(batch, length, dtype=torch.int32, device=input_ids.device)
        taken = 0
        for row in range(batch):
            row_total, first = int(mask[row].sum()), taken
            total = 0
            while total < row_total and taken < len(counts):
                total += counts[taken]
                taken += 1
            spans = spans_from_lengths(mask[row], counts[first:taken])
            ids[row] = block_ids(length, spans, input_ids.device)
        visible = dense_mask(ids, ids)
        if attention_mask is not None:
            visible = visible & attention_mask.bool()[:, None, :]
            # A row that sees nothing would make attention undefined; padding sees itself.
            visible |= torch.eye(length, dtype=torch.bool, device=visible.device)
        return visible[:, None]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_hw: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass through the LLM.

        Args:
            input_ids: int (B, T); image tokens as ``image_token_id``.
            attention_mask: int (B, T), zero at padding; or what the LLM takes as a finished mask
                (bool (B, 1, Q, K), or a flex-attention block mask), which is used as it is.
            position_ids: int (B, T); counted from the attention mask when absent.
            past_key_values: cache; images may only come with an empty one.
            inputs_embeds: (B, T, hidden_size), instead of ``input_ids``; then the mask is as given.
            pixel_values: (sum of h * w, 3 * P * P), all images of the batch in order.
            image_grid_hw: int (num_images, 2).
            labels: int (B, T), -100 where there is no target; adds ``loss``.
            logits_to_keep: as in transformers.

        Returns:
            transformers' causal language model output; logits (B, T, vocab_size).

        Raises:
            PlaceholderError: placeholders and image tokens differ in number.
            ValueError: both or neither of ``input_ids`` and ``inputs_embeds`` given, or images
                with a cache that is not empty.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        if position_ids is None and isinstance(attention_mask, torch.Tensor):
            position_ids = _positions(attention_mask, input_ids, inputs_embeds)
        if input_ids is not None:
            cached = past_key_values.get_seq_length() if past_key_values is not None else 0
            if pixel_values is not None and cached:
                raise ValueError("Images must be given with the first tokens of a sequence.")
            inputs_embeds = self.embed(input_ids, pixel_values, image_grid_hw)
            if pixel_values is not None and _is_padding_mask(attention_mask):
                attention_mask = self.attention(input_ids, image_grid_hw, attention_mask)
                attention_mask = self._for_implementation(attention_mask, inputs_embeds.dtype)
        return self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _for_implementation(
        self, mask: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Eager attention adds its mask to the scores: give it 0 and the lowest number."""
        if mask is None or mask.dim() == 2 or self.llm.config._attn_implementation != "eager":
            return mask
        lowest = torch.finfo(dtype).min
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, lowest)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_grid_hw: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Images go with the prompt only; later steps find them in the cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {"pixel_values": pixel_values, "image_grid_hw": image_grid_hw}
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Repeat prompts for several answers each; images are not a batch dimension."""
        images = {k: model_kwargs.pop(k, None) for k in ("pixel_values", "image_grid_hw")}
        if images["pixel_values"] is not None and expand_size > 1:
            raise ValueError(
                "Beams and num_return_sequences above 1 are not supported with images; repeat the "
                "prompt in the batch instead."
            )
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | images


def _is_padding_mask(attention_mask: Any) -> bool:
    return attention_mask is None or (
        isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2
    )


def _positions(
    attention_mask: torch.Tensor,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
) -> torch.Tensor | None:
    """Positions that count real tokens, so that left padding does not shift a prompt."""
    if attention_mask.dim() != 2:
        return None
    length = (input_ids if input_ids is not None else inputs_embeds).shape[1]  # type: ignore[union-attr]
    positions = attention_mask.long().cumsum(-1).sub(1).clamp(min=0)
    return positions[:, -length:]
