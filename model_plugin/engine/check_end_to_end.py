"""vLLM beside the Hugging Face side, on a checkpoint with random weights or one that is named."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedTokenizerFast

from model_plugin.config import VoRAConfig
from model_plugin.images import IMAGE_TOKEN, ImageSettings
from model_plugin.model import VoRAForCausalLM

PROMPTS: tuple[tuple[str, list[tuple[int, int]]], ...] = (
    ("Tell me about <image>, please.", [(90, 70)]),
    ("<image><image> Which one is larger?", [(60, 110), (112, 112)]),
    ("No image here.", []),
)
#: Tokens that are generated after each prompt.
TOKENS = 8


def compare(
    checkpoint: str | Path | None, dtype: torch.dtype, *, eager: bool = True
) -> tuple[bool, str]:
    """Log-probabilities of prompts with and without images and of ``TOKENS`` tokens after them.

    They come from vLLM, and in float32 from torch over the same tokens.

    Args:
        checkpoint: a folder; None makes one with random weights, heads of 128 and native
            resolution.
        dtype: what vLLM computes in.
        eager: False compiles the model; on CUDA, vLLM then runs it in CUDA graphs.

    Returns:
        Whether they agree, and a sentence with the numbers. In float32 the largest difference must
        be under 1e-3; in half precision, whose rounding any model shows, the mean difference must
        be a fifth of what causal attention would make of it, or less.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(checkpoint) if checkpoint else random_checkpoint(Path(folder))
        got, answers = _served(path, dtype, eager)
        expected, causal = (
            _reference(path, attention, answers) for attention in ("bidirectional", "default")
        )
    differences = [np.abs(a - b) for a, b in zip(got, expected, strict=True)]
    worst = max(float(d.max()) for d in differences)
    mean = float(np.mean([d.mean() for d in differences[:2]]))
    decoding = float(np.mean([d[-TOKENS:].mean() for d in differences[:2]]))
    control = float(
        np.mean([np.abs(a - b).mean() for a, b in zip(got[:2], causal[:2], strict=True)])
    )
    good = worst < 1e-3 if dtype == torch.float32 else max(mean, decoding) * 5 < control
    return good, (
        f"log-probabilities off by {mean:.1e} on average ({decoding:.1e} over {TOKENS} generated "
        f"tokens) and {worst:.1e} at most; causal attention would be off by {control:.1e} on "
        "average"
    )


def random_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A small VoRA with random weights, in the released layout."""
    torch.manual_seed(seed)
    vocabulary = {word: i for i, word in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN]
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    wrapped.save_pretrained(folder)
    config = VoRAConfig(
        architectures=["VoRAForCausalLM"],
        vocab_size=len(wrapped),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        initializer_range=0.15,
        image_size=112,
        vision_embedding_intermediate_size=96,
        eos_token_id=wrapped.eos_token_id,
    )
    VoRAForCausalLM(config).save_pretrained(folder)
    settings = ImageSettings(resolution="native", max_pixels=14 * 14 * 200).to_dict()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _images(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (h // 9, w // 9, 3), dtype=np.uint8)).resize((w, h))
        for w, h in sizes
    ]


@torch.no_grad()
def _reference(path: Path, attention: str, answers: list[list[int]]) -> list[np.ndarray]:
    processor = AutoProcessor.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.config.vision_attention_mask = attention
    rows = []
    for (prompt, sizes), answer in zip(PROMPTS, answers, strict=True):
        inputs = processor(images=_images(sizes), text=prompt, return_tensors="pt")
        tokens = torch.cat([torch.as_tensor(inputs.pop("input_ids")), torch.tensor([answer])], 1)
        inputs.pop("attention_mask", None)
        images = {k: torch.as_tensor(v) for k, v in inputs.items()}
        logits = model.eval()(input_ids=tokens, **images).logits[0]
        rows.append(logits.float().log_softmax(-1)[:-1].numpy())
    return rows


def _served(
    path: Path, dtype: torch.dtype, eager: bool
) -> tuple[list[np.ndarray], list[list[int]]]:
    """Log-probabilities (prompt + answer - 1, vocabulary) of each prompt, and its answer."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(path),
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=1024,
        max_num_seqs=4,
        enforce_eager=eager,
        gpu_memory_utilization=0.3,
        max_logprobs=-1,
    )
    requests: list[Any] = [
        {"prompt": prompt, "multi_modal_data": {"image": _images(sizes)}} if sizes
        else {"prompt": prompt}
        for prompt, sizes in PROMPTS
    ]  # fmt: skip
    sampling = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, prompt_logprobs=-1, logprobs=-1
    )
    rows, answers = [], []
    for output in engine.generate(requests, sampling, use_tqdm=False):
        entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        table = np.empty((len(entries), len(entries[0])))
        for index, row in enumerate(entries):
            for token, entry in row.items():
                table[index, token] = entry.logprob
        rows.append(table)
        answers.append(list(output.outputs[0].token_ids))
    engine.llm_engine.engine_core.shutdown()
    return rows, answers
