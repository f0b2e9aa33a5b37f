"""Where processed images are kept between requests: in the front end alone.

By default vLLM keeps them twice, and its front end sends an image only once, remembering what the
engine has. A request that is refused after its images were processed (too long, say) makes that
memory wrong: the next request with the image ends in a 500. Here the engine keeps nothing; bytes of
pixels cost little to send, and a chat's image is still decoded once, not on every turn.
"""

from typing import Any

from model_plugin.config import VoRAConfig


def keep_processed_images_in_front() -> None:
    """Have vLLM choose the cache that it uses with several front ends, for VoRA. Safe to repeat."""
    from vllm.multimodal.cache import factories

    choose: Any = factories._get_cache_type
    if getattr(choose, "in_front", False):
        return

    def in_front(vllm_config: Any) -> Any:
        chosen = choose(vllm_config)
        ours = isinstance(vllm_config.model_config.hf_config, VoRAConfig)
        return "processor_only" if ours and chosen == "lru" else chosen

    in_front.in_front = True  # type: ignore[attr-defined]
    factories._get_cache_type = in_front
