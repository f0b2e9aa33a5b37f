"""The encoder-based twin: LLaVA-1.5's vision tower and projector in the patch embedder's place.

Everything else stays: the LLM, the data loader, the training loop. What differs between VoRA and
its twin is then what sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from model_plugin import ConfigError, VoRAConfig, VoRAForCausalLM
from vora_serve.training.distill import captured, vision_blocks

#: Vision towers that vLLM and transformers both run inside LLaVA, by ``model_type``.
ENCODER_TYPES = ("clip_vision_model", "siglip_vision_model")
#: LLaVA-1.5 takes the states before the last block. Those after it are no choice: transformers and
#: vLLM disagree on whether SigLIP's last norm belongs to them.
FEATURE_LAYER = -2


class EncoderEmbedding(nn.Module):
    """Patches to LLM tokens by a vision tower and a two-layer projector.

    Stands where :class:`model_plugin.embedder.VoRAVisionEmbedding` does, and is called as it is.

    Args:
        tower: a CLIP or SigLIP vision model of transformers; its last block is not used.
        hidden_size: the LLM's.

    Raises:
        ConfigError: the tower is of another kind, or has a single block.
    """

    merge_size = 1

    def __init__(self, tower: nn.Module, hidden_size: int) -> None:
        super().__init__()
        config: Any = tower.config
        if config.model_type not in ENCODER_TYPES:
            raise ConfigError(
                f"The encoder is a {config.model_type}; LLaVA's are {', '.join(ENCODER_TYPES)}."
            )
        if config.num_hidden_layers < 2:
            raise ConfigError("The encoder has a single block, and LLaVA leaves out the last one.")
        self.tower = tower
        self.patch_size, self.grid = config.patch_size, config.image_size // config.patch_size
        self.linear_1 = nn.Linear(config.hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, pixel_values: torch.Tensor, image_grid_hw: torch.Tensor) -> torch.Tensor:
        """Tokens of a batch's images.

        Args:
            pixel_values: float (images * G * G, 3 * P * P), flattened patches.
            image_grid_hw: int (images, 2), each (G, G).

        Returns:
            (images * G * G, hidden_size).

        Raises:
            ConfigError: an image has another size than the tower's.
        """
        side, patch = self.grid, self.patch_size
        if bool((image_grid_hw != side).any()):
            raise ConfigError(f"The encoder sees grids of {side}x{side} patches alone.")
        blocks = pixel_values.view(-1, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
        pixels = blocks.reshape(-1, 3, side * patch, side * patch)
        layers = vision_blocks(self.tower)
        last = len(layers) - 2
        with captured(layers, [last], "output") as states:
            self.tower(pixel_values=pixels.to(next(self.tower.parameters()).dtype))
        features = states[last][:, -side * side :].flatten(0, 1)  # without a class token
        tokens: torch.Tensor = self.linear_2(functional.gelu(self.linear_1(features)))
        return tokens


def make_twin(model: VoRAForCausalLM, tower: nn.Module) -> VoRAForCausalLM:
    """Put a vision tower and a fresh projector in the place of a model's patch embedder.

    Args:
        model: a merged model; changed in place. Its images become the tower's, and its attention
            causal, as LLaVA's is.
        tower: for :class:`EncoderEmbedding`.

    Raises:
        ConfigError: the tower is of another kind.
    """
    holder: Any = model
    holder.vision_embedding = EncoderEmbedding(tower, model.config.hidden_size)
    config: Any = tower.config
    model.config.patch_size, model.config.image_size = config.patch_size, config.image_size
    model.config.spatial_merge_size = 1
    model.config.vision_attention_mask = "default"
    return model


def twin_config(llm: Any, tower: Any, image_token_id: int) -> VoRAConfig:
    """The configuration of a twin's VoRA side, which holds the LLM.

    Args:
        llm: the LLM's configuration.
        tower: the vision tower's.
        image_token_id: id of ``<|image_pad|>``.
    """
    config: VoRAConfig = VoRAConfig.from_llm_config(
        llm,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        vision_embedding_intermediate_size=tower.hidden_size,
        position_mode="interpolate",
        image_token_id=image_token_id,
    )
    config.vision_attention_mask = "default"
    return config
