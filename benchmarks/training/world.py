"""The small world that the small recipes and the ablation run on: base LLM, teacher, data files.

    python -m benchmarks.training.world [--out runs/world] [--images N]

An LLM that knows the world's language from text alone, a vision teacher trained on labelled
images, another one that can be LLaVA's encoder, and conversations about images in three of the
formats that training reads. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image

from model_plugin import VoRAConfig, VoRAForCausalLM, VoRAImageProcessor, VoRAProcessor
from model_plugin.images import ImageSettings
from vora_serve.demo.language import llm_config, train_tokenizer
from vora_serve.demo.recipe import TeacherRecipe
from vora_serve.demo.teacher import train_teacher
from vora_serve.training import FinetuneRecipe, Optimisation, finetune
from vora_serve.training.data_recipe import Data, Source
from vora_serve.world.questions import scene_caption, scene_questions
from vora_serve.world.scenes import Split, random_scene, render

SEED = 5
IMAGE_SIZE, PATCH = 48, 8
WIDTH, BLOCKS, TEACHER_BLOCKS, HEADS = 96, 4, 3, 4
QUESTIONS = 2
#: Shapes in an image: one or two, so that little training already separates configurations.
COUNTS = (1, 1, 2)


def settings() -> ImageSettings:
    """Fixed squares of 6 x 6 patches."""
    return ImageSettings(
        resolution="fixed", patch_size=PATCH, image_size=IMAGE_SIZE, resize_edge=IMAGE_SIZE
    )


def conversation(split: Split, index: int) -> tuple[Image.Image, list[dict[str, str]]]:
    """An image and questions about it, with answers, in the released form."""
    rng = np.random.default_rng([SEED, index, 101])
    scene = random_scene(SEED, split, index, count=int(rng.choice(COUNTS)))
    turns: list[dict[str, str]] = []
    for question in scene_questions(scene, rng)[:QUESTIONS]:
        turns.append({"from": "human", "value": question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return render(scene), turns


def described(index: int) -> list[dict[str, str]]:
    """The same in words instead of an image."""
    rng = np.random.default_rng([SEED, index, 103])
    scene = random_scene(SEED + 1, "train", index, count=int(rng.choice(COUNTS)))
    turns: list[dict[str, str]] = []
    for question in scene_questions(scene, rng)[:4]:
        told = f"{scene_caption(scene)} " if not turns else ""
        turns.append({"from": "human", "value": told + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return turns


def rows(split: Split, first: int, count: int) -> Iterator[dict[str, Any]]:
    """Rows of the released parquet schema."""
    for index in range(first, first + count):
        image, turns = conversation(split, index)
        yield {"id": f"{split}-{index}", "frames": [png(image)], "conversations": turns}


def png(image: Image.Image) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_data(out: Path, images: int) -> None:
    """Four parquet files, held-out samples, text, and a tar for fine-tuning."""
    share = images // 4
    for number in range(4):
        file = out / f"images-{number}.parquet"
        if not file.exists():
            pq.write_table(pa.Table.from_pylist(list(rows("train", number * share, share))), file)
    if not (out / "held_out.parquet").exists():
        table = pa.Table.from_pylist(list(rows("test", 0, 600)))
        pq.write_table(table, out / "held_out.parquet")
    write_text(out)
    if not (out / "conversations.tar").exists():
        with tarfile.open(out / ".conversations.tar", "w") as tar:
            for index in range(images, images + images // 4):
                image, turns = conversation("train", index)
                said = json.dumps({"conversations": turns}).encode()
                for suffix, content in (("png", png(image)), ("json", said)):
                    member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        (out / ".conversations.tar").rename(out / "conversations.tar")


def write_text(out: Path) -> None:
    """Conversations without images, which the base LLM learns from."""
    if not (out / "text.jsonl").exists():
        lines = [json.dumps({"id": i, "conversations": described(i)}) for i in range(6000)]
        (out / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_text_model(out: Path, steps: int, width: int = WIDTH) -> None:
    """A VoRA checkpoint that knows text alone; its embedder is untrained.

    vLLM serves it on CPU if its heads are 32 wide, as they are in an LLM of 128.
    """
    tokenizer = train_tokenizer(SEED, 512)
    processor = VoRAProcessor(VoRAImageProcessor(settings()), tokenizer)
    sizes = {"hidden_size": width, "layers": BLOCKS, "heads": HEADS, "kv_heads": HEADS}
    config = VoRAConfig.from_llm_config(
        llm_config(512, **sizes, mlp=3 * width),
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_embedding_intermediate_size=width,
        position_mode="interpolate",
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(SEED)
    recipe = FinetuneRecipe(
        optimisation=Optimisation(
            steps=steps,
            batch_size=24,
            lr=1e-3,
            optimizer="muon",
            schedule="cosine",
            final_lr=0.1,
            betas=(0.9, 0.98),
            warmup_steps=20,
            seed=SEED,
        ),
        max_length=320,
    )
    text = Data(sources=(Source(files=(str(out / "text.jsonl"),)),), shuffle_buffer=1000)
    model = VoRAForCausalLM(config)
    finetune(model, processor, text, recipe, out / "log", out / "text")


def make_teacher(
    out: Path,
    steps: int,
    images: int,
    name: str = "teacher",
    architecture: Literal["aimv2", "siglip"] = "aimv2",
    width: int = WIDTH,
) -> None:
    """A small vision model that knows shapes, colours and places."""
    recipe = TeacherRecipe(
        architecture=architecture,
        hidden_size=width,
        layers=TEACHER_BLOCKS,
        heads=HEADS,
        mlp=2 * width,
        images=images,
        optimisation=Optimisation(
            steps=steps,
            batch_size=32,
            lr=1.5e-3,
            optimizer="muon",
            weight_decay=0.1,
            schedule="cosine",
            final_lr=0.1,
            betas=(0.9, 0.98),
            warmup_steps=50,
            log_every=50,
            seed=SEED,
        ),
    )
    vision, accuracies = train_teacher(recipe, settings(), out / "log")
    text = json.dumps(accuracies, indent=2) + "\n"
    (out / f"{name}.json").write_text(text, encoding="utf-8")
    vision.save_pretrained(out / f".{name}")
    (out / f".{name}").rename(out / name)


def make_world(out: Path, images: int = 8000, text_steps: int = 250, steps: int = 2000) -> None:
    """Make what is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    times = {}
    parts: tuple[tuple[str, Path, Callable[[], object]], ...] = (
        ("data", out / "conversations.tar", lambda: write_data(out, images)),
        ("text", out / "text", lambda: make_text_model(out, text_steps)),
        ("teacher", out / "teacher", lambda: make_teacher(out, steps, 2 * images)),
        (
            "encoder",
            out / "encoder",
            lambda: make_teacher(out, steps, 2 * images, "encoder", "siglip"),
        ),
    )
    for name, done, make in parts:
        if not done.exists():
            start = time.process_time()
            make()
            times[name] = round(time.process_time() - start, 1)
    if times:
        (out / "cpu_seconds.json").write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/world"))
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    make_world(arguments.out, arguments.images)


if __name__ == "__main__":
    main()
