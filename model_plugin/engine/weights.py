"""Weights into vLLM's model: every tensor of the checkpoint used, or the load stops.

vLLM's loader drops biases that a layer does not declare. The released checkpoints depend on such
biases, so they are taken out of the stream and attached to the layers here.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear
from vllm.model_executor.models.utils import AutoWeightsLoader, is_pp_missing_parameter
from vllm.model_executor.utils import set_weight_attrs

from model_plugin.checkpoint import expected_shapes
from model_plugin.config import VoRAConfig
from model_plugin.tensors import merge_lora
from vora_core.errors import CheckpointError
from vora_core.layout import complain, part_of

TensorStream = Iterable[tuple[str, torch.Tensor]]

#: Layers that vLLM fuses: the fused layer's name and which of its shards they are.
FUSED_LAYERS: dict[str, tuple[str, str | int]] = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


def load_weights(
    model: nn.Module, config: VoRAConfig, weights: TensorStream, *, quantized: bool = False
) -> set[str]:
    """Load a checkpoint, in any layout, as it streams by.

    LoRA factors are merged into their weights, ``aux_vision.*`` is left out.

    Args:
        model: vLLM's model, its LLM under ``llm``, the patch embedder under ``vision_embedding``.
        config: the checkpoint's configuration.
        weights: names in the released layout and their tensors.
        quantized: the LLM's linear layers are stored in a quantised format, whose tensors have
            names and shapes of their own; vLLM's loader then judges them.

    Returns:
        Names of the parameters that were loaded.

    Raises:
        CheckpointError: tensors are unknown, missing or of another shape; they are named.
    """
    loading = _Loading(model, config, quantized)
    served = (item for item in weights if part_of(item[0]) != "aux")
    stream = loading.sift(merge_lora(served, config.lora_modules))
    try:
        loaded: set[str] = AutoWeightsLoader(model).load_weights(stream)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"The checkpoint's tensors do not fit: {error}") from error
    loading.finish()
    return loaded | loading.attached


class _Loading:
    """The bookkeeping of one load."""

    def __init__(self, model: nn.Module, config: VoRAConfig, quantized: bool) -> None:
        self.model = model
        self.quantized = quantized
        self.expected = expected_shapes(config)
        if config.tie_word_embeddings:
            self.expected.pop("llm.lm_head.weight", None)
        self.tied = config.tie_word_embeddings
        self.attached: set[str] = set()
        self.seen: set[str] = set()
        self.unknown: set[str] = set()

    def sift(self, stream: TensorStream) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass on what vLLM's loader takes; load biases; remember what nobody takes."""
        for name, tensor in stream:
            self.seen.add(name)
            self._check_shape(name, tensor)
            if name.startswith("llm.") and name.endswith(".bias"):
                if not self._load_bias(name, tensor):
                    self.unknown.add(name)
            elif name in self.expected or (self.quantized and part_of(name) == "llm"):
                yield name, tensor
            elif not (self.tied and name == "llm.lm_head.weight"):
                self.unknown.add(name)

    def finish(self) -> None:
        """Complain about tensors that nobody took or that never came.

        Raises:
            CheckpointError: there are any.
        """
        missing = self.expected.keys() - self.seen
        if self.quantized:
            # A quantised layer has no "weight"; that its tensors are complete is vLLM's to check.
            missing = {name for name in missing if part_of(name) == "vision"}
        complain(self.unknown, missing)

    def _check_shape(self, name: str, tensor: torch.Tensor) -> None:
        if self.quantized and part_of(name) == "llm":
            return
        expected = self.expected.get(name)
        if expected is None and name.endswith(".bias"):
            weight = self.expected.get(name.removesuffix("bias") + "weight", ())
            expected = weight[:1] if len(weight) == 2 else None
        if expected and tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"The tensor {name} is {list(tensor.shape)}, but the configuration calls for "
                f"{list(expected)}."
            )

    def _load_bias(self, name: str, tensor: torch.Tensor) -> bool:
        """Load the bias of a linear layer, which gets one if its architecture declares none.

        Args:
            name: the bias in the released layout, of ``q_proj``, ``gate_proj`` and so on.
            tensor: (output size,), whole, whatever the tensor parallel size.

        Returns:
            Whether there is such a layer, here or on another pipeline rank.
        """
        if is_pp_missing_parameter(name, self.model):
            return True
        parent, _, leaf = name.removesuffix(".bias").rpartition(".")
        fused, shard = FUSED_LAYERS.get(leaf, (leaf, None))
        try:
            layer = self.model.get_submodule(f"{parent}.{fused}")
        except AttributeError:
            return False
        if not isinstance(layer, LinearBase):
            return False
        if layer.bias is None:
            _add_bias(layer)
        if shard is None:
            layer.weight_loader(layer.bias, tensor)
        else:
            layer.weight_loader(layer.bias, tensor, shard)
        self.attached.add(f"{parent}.{fused}.bias")
        return True


def _add_bias(layer: LinearBase) -> None:
    """A bias of zeros, as vLLM's own layers declare theirs.

    Zeros stand for the half of a fused layer that has no bias. In row-parallel layers the bias is
    whole on every rank; vLLM adds it on the first only.
    """
    size = (
        layer.output_size
        if isinstance(layer, RowParallelLinear)
        else getattr(layer, "output_size_per_partition", layer.output_size)
    )
    device = next(layer.parameters()).device
    bias = nn.Parameter(
        torch.zeros(size, dtype=layer.params_dtype, device=device), requires_grad=False
    )
    set_weight_attrs(bias, {"output_dim": 0, "weight_loader": layer.weight_loader})
    layer.register_parameter("bias", bias)
    layer.update_param_tp_status()
