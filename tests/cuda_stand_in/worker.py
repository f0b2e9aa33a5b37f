"""vLLM's worker for GPUs, on the CPU."""

from __future__ import annotations

import torch
from vllm.utils.torch_utils import set_random_seed
from vllm.v1.worker.gpu_worker import Worker, init_worker_distributed_environment
from vllm.v1.worker.worker_base import CompilationTimes


class StandInWorker(Worker):
    """All of vLLM's worker but what asks a device: its set-up, memory and kernel warm-up."""

    def init_device(self) -> None:
        """As in vLLM, with tensors on the CPU and no look at a device's memory."""
        self.device = torch.device("cpu")
        self.vllm_config.device_config.device = self.device
        init_worker_distributed_environment(
            self.vllm_config, self.rank, self.distributed_init_method, self.local_rank, "gloo"
        )
        set_random_seed(self.model_config.seed)
        self._init_workspace_and_model_runner()

    def determine_available_memory(self) -> int:
        """What the settings say, after vLLM's profiling run."""
        self.model_runner.profile_run()
        return int(self.cache_config.kv_cache_memory_bytes)

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Captures graphs as in vLLM; there are no kernels to warm up."""
        if not self.model_config.enforce_eager:
            self.model_runner.capture_model()
        return CompilationTimes(language_model=0.0, encoder=0.0)
