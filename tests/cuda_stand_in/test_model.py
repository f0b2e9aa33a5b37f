"""The model as vLLM builds it for CUDA: layers, weights, images."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from model_plugin.processor import VoRAProcessor
from tests.model_plugin.conftest import Make, noise_image
from tests.model_plugin.engine.harness import bare_model


def test_layers_weights_and_images(make_checkpoint: Make) -> None:
    from vllm.model_executor.layers.attention import Attention

    from model_plugin.engine.attention_cuda import (
        SpanFlashAttentionBackend,
        SpanFlashAttentionImpl,
    )

    path: Path = make_checkpoint(resolution="native", preprocessor={"max_pixels": 120 * 14 * 14})
    features = VoRAProcessor.from_pretrained(path).image_processor(
        [noise_image(90, 70), noise_image(56, 112)], return_tensors="pt"
    )
    with bare_model(path, dtype="bfloat16") as model:
        layers = [module for module in model.modules() if isinstance(module, Attention)]
        assert layers
        for layer in layers:
            assert layer.attn_backend is SpanFlashAttentionBackend
            assert isinstance(layer.impl, SpanFlashAttentionImpl)
            assert layer.impl.vllm_flash_attn_version == 3
        loaded = model.load_weights(iter(load_file(path / "model.safetensors").items()))
        assert loaded >= {name for name, _ in model.named_parameters()}
        images = model.embed_multimodal(**features)
        grids = features["image_grid_hw"].prod(-1).tolist()
        assert [len(image) for image in images] == grids
        assert all(image.dtype == torch.bfloat16 for image in images)
        text = torch.zeros(8, dtype=torch.long)
        places = torch.tensor([0, 1, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
        embedded = model.embed_input_ids(
            text, multimodal_embeddings=[images[0][:4]], is_multimodal=places
        )
        assert torch.equal(embedded[1:5], images[0][:4])
