"""What an engine's workers do about adapters beside vLLM's LoRA: keep their embedders.

vLLM mixes this class into its worker (``--worker-extension-cls``); the front end calls its methods
by name, on every rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_plugin.engine.adapters.model import VoRAHostForConditionalGeneration

WORKER_EXTENSION = "model_plugin.engine.adapters.worker.AdapterWorker"


class AdapterWorker:
    """A worker's methods for vision adapters."""

    def vora_load_adapter(self, key: int, folder: str) -> None:
        """Load an adapter's embedder."""
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config):  # type: ignore[attr-defined]
            self._vora_host().load_adapter(key, Path(folder))

    def vora_drop_adapter(self, key: int) -> None:
        """Forget an adapter's embedder."""
        self._vora_host().drop_adapter(key)

    def vora_adapters(self) -> list[int]:
        """Keys of the embedders that are in memory."""
        return sorted(self._vora_host().embedders)

    def _vora_host(self) -> VoRAHostForConditionalGeneration:
        model: VoRAHostForConditionalGeneration = self.get_model()  # type: ignore[attr-defined]
        return model
