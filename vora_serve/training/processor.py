"""Tokenizer, chat template and image settings of the model that a run starts from."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model_plugin import (
    IMAGE_TOKEN,
    ConfigError,
    ImageSettings,
    VoRAImageProcessor,
    VoRAProcessor,
)
from model_plugin.chat_template import DEFAULT_CHAT_TEMPLATE, default_for
from vora_core.checkpoint import CONFIG_FILE, MODEL_TYPE, PROCESSOR_FILE, CheckpointHeader
from vora_serve.training.run_recipe import ModelSettings


def load_processor(settings: ModelSettings, images: ImageSettings) -> VoRAProcessor:
    """The processor of a run.

    Args:
        settings: the recipe's.
        images: the run's image settings.

    Raises:
        ConfigError: tokenizer or template cannot be read.
    """
    template = _template(settings.chat_template)
    if _is_vora(Path(settings.path)):
        own = VoRAProcessor.from_pretrained(settings.path)
        tokenizer, template = own.tokenizer, template or own.chat_template
    else:
        tokenizer = _tokenizer(settings.path)
        template = template or _own_template(tokenizer, settings.path)
    _ensure_padding(tokenizer, settings.path)
    return VoRAProcessor(VoRAImageProcessor(images), tokenizer, template)


def _is_vora(folder: Path) -> bool:
    """Whether it is a VoRA checkpoint's folder."""
    if not (folder / PROCESSOR_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        return False
    return CheckpointHeader.open(folder).model_type == MODEL_TYPE


def _ensure_padding(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Let a tokenizer without padding pad with the token that ends texts: no padding is learned."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"The tokenizer of {path} has no end-of-text token (eos_token).")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _template(file: str | None) -> str | None:
    if file is None:
        return None
    if file == "chatml":
        return DEFAULT_CHAT_TEMPLATE
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The template cannot be read: {error}.") from error


def _own_template(tokenizer: PreTrainedTokenizerBase, path: str) -> str:
    """An LLM's chat template as it is; ChatML for one without, where it has ChatML's tokens."""
    if tokenizer.chat_template:
        return str(tokenizer.get_chat_template())
    chatml = default_for(tokenizer.get_vocab())
    if chatml is None:
        raise ConfigError(f"The tokenizer of {path} has no chat template; set model.chat_template.")
    return chatml


def _tokenizer(path: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"The tokenizer of {path} cannot be loaded: {reason}") from error
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return tokenizer
