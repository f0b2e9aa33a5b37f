"""What an engine in this process is measured with.

Requests are added first, which processes their images on the host; then the engine steps until all
are done. The two are timed apart, so that neither hides behind the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu.records import Row
from loadtest.checkpoints import WORDS
from loadtest.cost.model import ModelCost

#: Words of text in each prompt, a token each.
TEXT = 64


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are.

    Args:
        side: of an image, in pixels.
        images: in the one prompt whose time to first token is measured.
        prompts: of one image each, for prefill throughput.
        requests: that decode beside each other.
        tokens: that each of them generates.
        flood: requests of one image each, for saturation.
    """

    side: int
    images: tuple[int, ...]
    prompts: int
    requests: tuple[int, ...]
    tokens: int
    flood: int

    def cases(self) -> list[tuple[str, int]]:
        """Kinds and counts of the paired measurements."""
        return [
            *(("ttft", count) for count in self.images),
            ("prefill", self.prompts),
            *(("decode", count) for count in self.requests),
        ]


FULL = Sizes(side=448, images=(1, 4, 16), prompts=16, requests=(1, 32, 256), tokens=65, flood=48)
TINY = Sizes(side=224, images=(1, 2), prompts=2, requests=(1, 2), tokens=4, flood=2)


class Workload:
    """Measurements of one engine.

    Args:
        engine: vLLM's ``LLM``, in this process.
        cost: what its checkpoint costs on paper.
        sizes: how large the measurements are.
    """

    def __init__(self, engine: Any, cost: ModelCost, sizes: Sizes) -> None:
        self._core = engine.llm_engine
        self._cost = cost
        self._sizes = sizes
        self._random = np.random.default_rng(0)
        self._number = 0
        self._marker = "<|image_pad|>"
        if cost.family == "qwen2_5_vl":
            self._marker = f"<|vision_start|>{self._marker}<|vision_end|>"

    def run(self, kind: str, count: int) -> Row:
        """Measure.

        Args:
            kind: ``ttft`` (one prompt of ``count`` images), ``prefill`` and ``flood`` (``count``
                prompts of one image), or ``decode`` (``count`` requests of text).

        Returns:
            Seconds on the host and in the engine, tokens, and the operations or bytes on paper.
        """
        if kind == "decode":
            return self._decode(count)
        requests, images = (1, count) if kind == "ttft" else (count, 1)
        return self._prefill(requests, images)

    def _prefill(self, requests: int, images: int) -> Row:
        side = self._sizes.side
        host, busy = time.perf_counter(), time.process_time()
        # Making the images is no part of serving them.
        prompts = [self._prompt(images) for _ in range(requests)]
        host, busy = time.perf_counter(), time.process_time()
        for prompt in prompts:
            self._add(prompt, tokens=1)
        host, busy = time.perf_counter() - host, time.process_time() - busy
        begin = time.perf_counter()
        tokens = 0
        while self._core.has_unfinished_requests():
            for output in self._core.step():
                tokens += len(output.prompt_token_ids)
        seconds = time.perf_counter() - begin
        image_tokens = images * self._cost.image_tokens((side, side))
        text = tokens // requests - image_tokens
        flops = requests * self._cost.prefill_flops(text, [(side, side)] * images)
        return {
            "requests": requests,
            "images": images,
            "prompt_tokens": tokens,
            "host_s": host,
            "host_cpu_s": busy,
            "engine_s": seconds,
            "flops": flops,
        }

    def _decode(self, requests: int) -> Row:
        for _ in range(requests):
            self._add(self._prompt(0), tokens=self._sizes.tokens)
        waiting, generated, begin, last = requests, 0, 0.0, 0.0
        begun: set[str] = set()
        while self._core.has_unfinished_requests():
            for output in self._core.step():
                new = len(output.outputs[0].token_ids)
                if waiting:
                    begun.update([output.request_id] if new else [])
                else:
                    generated += new
            if waiting and len(begun) == requests:
                # Every prompt is computed: from here on, all steps decode.
                waiting, begin = 0, time.perf_counter()
            last = time.perf_counter()
        context = TEXT + self._sizes.tokens // 2
        steps = generated / requests
        return {
            "requests": requests,
            "generated": generated,
            "engine_s": last - begin,
            "flops": steps * self._cost.decode_flops(context, requests),
            "bytes": steps * self._cost.decode_bytes(context, requests),
        }

    def _prompt(self, images: int) -> dict[str, Any]:
        """Words and images that no earlier prompt contained."""
        words = self._random.choice(WORDS, TEXT)
        prompt: dict[str, Any] = {"prompt": self._marker * images + " " + " ".join(words)}
        if images:
            side = self._sizes.side
            pixels = self._random.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
            prompt["multi_modal_data"] = {"image": [Image.fromarray(image) for image in pixels]}
        return prompt

    def _add(self, prompt: dict[str, Any], tokens: int) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._number += 1
        sampling = SamplingParams(
            max_tokens=tokens,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._core.add_request(str(self._number), prompt, sampling)
