"""A scheduler that computes an image in one step or not at all.

Tokens of an image attend to each other, so all of them must be scheduled together. vLLM's own
guard (``disable_chunked_mm_input``) lets an image be cut that starts exactly where a chunk starts,
or whose first part is found in the prefix cache.
"""

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import SchedulerInterface
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from model_plugin.engine.whitespace import bound_in_json
from model_plugin.errors import SplitSpanError
from model_plugin.spans import Span


def whole_spans(start: int, count: int, spans: list[Span]) -> int:
    """How many of ``count`` tokens from ``start`` on can be scheduled without cutting an image.

    A span that began before ``start`` may end in this step: its first part is in the prefix cache,
    computed with the same image and the same text before it.

    Args:
        start: position of the first token.
        count: number of tokens that there is room for.
        spans: inclusive image spans, ascending.

    Returns:
        ``count``, or fewer: up to the image that would be cut; 0 if ``start`` lies in it.
    """
    for first, last in spans:
        if last >= start + count and first < start + count:
            return max(0, first - start)
    return count


class SpanGuard:
    """Mixin for vLLM's schedulers: images are scheduled whole."""

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """As in vLLM, after leaving out the image that the token budget would cut.

        What is left out waits for the next step, which has room for it: at start-up the token
        budget is made to hold the largest image beside a token for every running request.
        """
        spans = [
            span
            for feature in request.mm_features
            for span in feature.mm_position.extract_embeds_range()
        ]
        whole = whole_spans(num_computed_tokens, num_new_tokens, spans)
        result: tuple[list[int], int, int, list[int], list[int]]
        result = super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, whole, encoder_compute_budget, shift_computed_tokens
        )
        # vLLM may shorten the chunk further, for want of room for an image's embeddings; it then
        # stops before the image. Attention backends that are not ours would not notice a cut.
        if whole_spans(num_computed_tokens, result[1], spans) != result[1]:
            raise SplitSpanError(
                f"The scheduler cut an image of request {request.request_id} at token "
                f"{num_computed_tokens + result[1]}."
            )
        return result


class SpanScheduler(SpanGuard, Scheduler):
    """vLLM's scheduler with whole images."""


class SpanAsyncScheduler(SpanGuard, AsyncScheduler):
    """vLLM's asynchronous scheduler with whole images."""


def make_scheduler(vllm_config: VllmConfig, **kwargs: Any) -> SchedulerInterface:
    """The scheduler that the engine's settings ask for; vLLM calls this as ``scheduler_cls``.

    Whether scheduling is asynchronous is decided after the configuration hook has run, hence here.
    This is also the process that compiles grammars.
    """
    bound_in_json()
    asynchronous = vllm_config.scheduler_config.async_scheduling
    scheduler = SpanAsyncScheduler if asynchronous else SpanScheduler
    return scheduler(vllm_config=vllm_config, **kwargs)
