"""What the attention backends ask about a batch's images."""

from collections.abc import Mapping, Sequence
from typing import Any

from model_plugin.errors import SplitSpanError
from model_plugin.spans import Span


def takes_images(model_config: Any) -> bool:
    """Whether a model's attention depends on images: a bidirectional VoRA that is given some.

    Other models that share a process with VoRA, and VoRA served for text only
    (``--limit-mm-per-prompt`` of 0), are left to the stock backend.
    """
    if model_config.hf_config.model_type != "vora" or not model_config.is_mm_prefix_lm:
        return False
    multimodal = model_config.multimodal_config
    return multimodal is not None and multimodal.get_limit_per_prompt("image") != 0


def require_ranges(batch: Any) -> Mapping[int, Sequence[Span]]:
    """Image spans of each request of a batch, inclusive, by its index.

    Raises:
        SplitSpanError: the model runner does not say; then nothing may be computed.
    """
    ranges: Mapping[int, Sequence[Span]] | None = batch.mm_req_doc_ranges
    if ranges is None:
        raise SplitSpanError("The model runner does not report image spans.")
    return ranges
