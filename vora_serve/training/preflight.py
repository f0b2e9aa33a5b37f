"""A run's data, looked at before any weights are read: what is wrong with it, what is held out."""

from model_plugin import ConfigError
from vora_serve.training.conversations import read_row
from vora_serve.training.data import Tokeniser, TooLongError
from vora_serve.training.data_recipe import Data, Source
from vora_serve.training.held_out import HeldOutSet
from vora_serve.training.labels import SampleError
from vora_serve.training.rows import FAULT
from vora_serve.training.run_recipe import FinetuneRun, PretrainRun
from vora_serve.training.sources import first_rows, folder_of, row_name

_LOOKED_AT = 8


def check_data(recipe: PretrainRun | FinetuneRun, tokeniser: Tokeniser) -> HeldOutSet | None:
    """See that a run's data can be read.

    Args:
        recipe: the run.
        tokeniser: of the run.

    Returns:
        The samples that the run is evaluated on while it lasts.

    Raises:
        ConfigError: it cannot; the sentence says why.
    """
    check_sources(recipe.data, tokeniser)
    settings = recipe.held_out
    if settings is None:
        return None
    data = Data(sources=settings.sources, shuffle_buffer=settings.samples)
    size = recipe.optimisation.micro_batch_size or 8
    try:
        return HeldOutSet(data, tokeniser, settings.samples, settings.every, size)
    except SampleError as error:
        raise ConfigError(f"The held-out samples cannot be read: {error}") from error


def check_sources(data: Data, tokeniser: Tokeniser) -> float:
    """Read and tokenise the first rows of every source.

    Args:
        data: the recipe's section.
        tokeniser: of the run.

    Returns:
        Mean number of tokens of these samples, weighted as the recipe mixes them.

    Raises:
        ConfigError: files are missing, or a source's first rows are all broken; it says why.
    """
    total = weighted = 0.0
    for source in data.sources:
        weighted += source.weight * _look(source, tokeniser)
        total += source.weight
    return weighted / total


def _look(source: Source, tokeniser: Tokeniser) -> float:
    lengths: list[int] = []
    first_fault = None
    number = 0
    for number, row in enumerate(first_rows(source, _LOOKED_AT), 1):
        try:
            if FAULT in row:
                raise SampleError(row[FAULT])
            lengths.append(len(tokeniser(read_row(row, folder_of(source))).input_ids))
        except TooLongError:
            lengths.append(tokeniser.max_length)
        except SampleError as error:
            first_fault = first_fault or f"{row_name(row, source, number)}: {error}"
    if not number:
        raise ConfigError(f"The data files {', '.join(source.files)} hold no samples.")
    if not lengths:
        raise ConfigError(f"None of the first {number} samples can be trained on. {first_fault}")
    return sum(lengths) / len(lengths)
