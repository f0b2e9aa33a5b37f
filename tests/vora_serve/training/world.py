"""A model, a teacher and samples small enough to train in seconds."""

from pathlib import Path

import torch
from PIL import Image
from transformers import Aimv2VisionConfig, Aimv2VisionModel, AutoProcessor, Qwen2Config

from model_plugin import VoRAConfig, VoRAForCausalLM, VoRAProcessor
from vora_serve.training import Sample, Teacher

RELEASED = Path(__file__).parents[2] / "fixtures" / "released_vora_tiny"
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 220)}


def processor() -> VoRAProcessor:
    """The released fixture's: fixed, 112 pixels, patches of 14."""
    loaded: VoRAProcessor = AutoProcessor.from_pretrained(RELEASED / "merged")
    return loaded


def model(seed: int = 0, layers: int = 3) -> VoRAForCausalLM:
    """A random VoRA, 64 wide."""
    torch.manual_seed(seed)
    llm = Qwen2Config(
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=352,
    )
    config = VoRAConfig.from_llm_config(
        llm,
        image_size=112,
        vision_embedding_intermediate_size=48,
        position_mode="interpolate",
        image_token_id=6,
    )
    return VoRAForCausalLM(config)


def teacher(seed: int = 1, layers: int = 2) -> Teacher:
    """A random AIMv2, 48 wide."""
    torch.manual_seed(seed)
    config = Aimv2VisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
        use_head=False,
    )
    return Teacher(Aimv2VisionModel(config))


class Colours:
    """Plain images with their colour; every third sample is text alone."""

    def __getitem__(self, index: int) -> Sample:
        if index % 3 == 0:
            return Sample([_user("Say hi."), _assistant("hi")])
        name, rgb = list(COLOURS.items())[index % len(COLOURS)]
        asked = _user([{"type": "image"}, {"type": "text", "text": "Which colour?"}])
        return Sample(
            [asked, _assistant(name), _user("Sure?"), _assistant("yes")],
            [Image.new("RGB", (60, 40), rgb)],
        )


def _user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, object]:
    return {"role": "assistant", "content": content}
