"""LoRA on the LLM's first blocks (section 3.1), by peft, and its way to the released layout."""

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from model_plugin import ConfigError, VoRAForCausalLM
from vora_core.layout import LINEAR_LAYERS


def attach_lora(model: VoRAForCausalLM, rank: int, n_vit: int) -> PeftModel:
    """Freeze the LLM and give every linear layer of its first blocks LoRA factors.

    Args:
        model: changed in place.
        rank: of the factors; alpha equals it, so the update is B A.
        n_vit: number of blocks.

    Returns:
        peft's view of the LLM.
    """
    names = [layer.rpartition(".")[2] for layer in LINEAR_LAYERS]
    settings = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=names,
        layers_to_transform=list(range(n_vit)),
        layers_pattern="layers",
    )
    peft_model = get_peft_model(model.llm, settings)
    model.config.lora = {"r": rank, "layers": n_vit, "target_modules": list(LINEAR_LAYERS)}
    return peft_model


def check_trainable(module: nn.Module, allowed: tuple[str, ...]) -> dict[str, int]:
    """See that nothing trains but what should.

    Args:
        module: a model.
        allowed: parts of names; a trainable parameter must contain one of them.

    Returns:
        Number of trainable parameters by the part that matched, and of frozen ones.

    Raises:
        ConfigError: another parameter is trainable.
    """
    counts = dict.fromkeys((*allowed, "frozen"), 0)
    for name, parameter in module.named_parameters():
        part = next((part for part in allowed if part in name), None)
        if not parameter.requires_grad:
            counts["frozen"] += parameter.numel()
        elif part is None:
            raise ConfigError(f"{name} would train, but only {', '.join(allowed)} should.")
        else:
            counts[part] += parameter.numel()
    return counts
