"""Which of the LLM's blocks get LoRA, and which learn from the teacher's."""

from dataclasses import dataclass, field

from model_plugin import ConfigError
from vora_serve.training.distill import distilled_blocks
from vora_serve.training.recipe import PretrainRecipe


@dataclass(frozen=True)
class Blocks:
    """Blocks of the LLM.

    Attributes:
        lora: the first so many get LoRA (N_vit); 0 where the whole LLM trains.
        distilled: numbers of those that are aligned with the teacher's.
    """

    lora: int = 0
    distilled: list[int] = field(default_factory=list)


def choose_blocks(recipe: PretrainRecipe, depth: int | None, llm_blocks: int) -> Blocks:
    """The blocks of a pretraining.

    Args:
        recipe: the run.
        depth: the teacher's number of blocks; None without a teacher.
        llm_blocks: the LLM's.

    Raises:
        ConfigError: the LLM has too few blocks.
    """
    distilled = distilled_blocks(recipe.distillation, depth or 0, llm_blocks)
    lora = recipe.n_vit or depth or llm_blocks if recipe.trains == "lora" else 0
    if lora > llm_blocks:
        raise ConfigError(f"LoRA is asked for {lora} blocks, but the LLM has {llm_blocks}.")
    return Blocks(lora, distilled)
