"""Fine-tune the demo on a folder of your own images, one folder a label, and serve the result.

python finetune_own.py IMAGES --out my-model --question "What is this?"

    IMAGES/cat/1.png, IMAGES/cat/2.png, IMAGES/dog/1.png, ...

One image in five of each label is held out: training never sees it. Beside the model, the script
writes the data as JSON lines, a recipe and an evaluation, so that you can change them and run
`vora-serve finetune --config RECIPE` and `vora-serve evaluate --config EVALUATION` by hand. On two
idle cores, 100 steps take about two minutes.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import yaml

import vora_serve.demo
from vora_core.installation import missing, not_installed, program

DEMO = Path(vora_serve.demo.__file__).parent / "checkpoint"
KINDS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
COMMAND = [sys.executable, "-c", "from vora_serve.cli import main; main()"]


def rows(images: Path, question: str) -> tuple[list[dict], list[dict]]:
    """A record for each image, to train on and held out; the name of its folder is the answer."""
    labels: dict[str, list[dict]] = {}
    for path in sorted(images.glob("*/*")):
        if path.suffix.lower() in KINDS:
            answer = path.parent.name
            row = {
                "image": str(path.relative_to(images)),
                "conversations": [
                    {"from": "human", "value": f"<image>{question}"},
                    {"from": "gpt", "value": answer},
                ],
            }
            labels.setdefault(answer, []).append(row)
    if len(labels) < 2:
        sys.exit(f"{images} needs at least two folders with images in them.")
    train: list[dict] = []
    held_out: list[dict] = []
    draw = random.Random(1)
    for label in labels.values():
        draw.shuffle(label)
        count = len(label) // 5
        held_out += label[:count]
        train += label[count:]
    draw.shuffle(train)
    draw.shuffle(held_out)
    return train, held_out


def questions(held_out: list[dict]) -> list[dict]:
    """The held-out images as `vora-serve evaluate` takes them."""
    asked = []
    for row in held_out:
        question, answer = (turn["value"] for turn in row["conversations"])
        question = question.removeprefix("<image>")
        asked.append(
            {"image": row["image"], "question": question, "answer": answer, "category": answer}
        )
    return asked


def recipe(train: Path, held_out: Path, samples: int, arguments: argparse.Namespace) -> dict:
    """The whole recipe; `vora-serve finetune --dry-run` says what another one would take."""
    image_dir = str(arguments.images.resolve())
    kept = [{"files": [str(file)]} for file in arguments.also]
    whole = {
        "model": {"path": arguments.model},
        "data": {"sources": [{"files": [str(train)], "image_dir": image_dir}, *kept]},
        "optimisation": {
            "steps": arguments.steps,
            "batch_size": 16,
            "lr": 5.0e-4,
            "schedule": "cosine",
            "warmup_steps": 10,
            "log_every": 10,
            "seed": 1,
        },
        "max_length": 512,
        "run": str(arguments.out) + "-run",
        "out": str(arguments.out),
    }
    if samples:
        source = {"files": [str(held_out)], "image_dir": image_dir}
        whole["held_out"] = {"sources": [source], "every": 20, "samples": samples}
    return whole


def evaluation(data: Path, images: Path) -> dict:
    """What `vora-serve evaluate` asks: the held-out images, with the question as it was trained."""
    suite = {"kind": "vqa", "data": str(data), "images": str(images.resolve())}
    return {"suites": [suite | {"prompt": "{question}", "name": "held-out images"}]}


def write_lines(file: Path, records: list[dict]) -> Path:
    """Write records as JSON lines."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def write_yaml(file: Path, plain: dict) -> Path:
    """Write plain data as YAML."""
    file.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return file


def main() -> None:
    """Write data, recipe and evaluation, train, and say how to serve what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path("my-model"))
    parser.add_argument("--question", default="What is this?")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--model", default=str(DEMO), help="a merged VoRA checkpoint")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], metavar="FILE",
        help="other data to mix in, in equal parts, so that the model keeps what it knew",
    )  # fmt: skip
    arguments = parser.parse_args()
    if absent := missing("train"):
        sys.exit(not_installed("Fine-tuning", absent, "train"))
    out = arguments.out
    if not arguments.images.is_dir():
        sys.exit(f"There is no folder {arguments.images}.")
    if out.exists():
        sys.exit(f"{out} is there already; give another --out.")

    train, held_out = rows(arguments.images, arguments.question)
    data = write_lines(Path(f"{out}-data.jsonl"), train)
    kept = write_lines(Path(f"{out}-held-out.jsonl"), held_out)
    asked = write_lines(Path(f"{out}-questions.jsonl"), questions(held_out))
    config = write_yaml(Path(f"{out}-recipe.yaml"), recipe(data, kept, len(held_out), arguments))
    evaluate = write_yaml(Path(f"{out}-evaluation.yaml"), evaluation(asked, arguments.images))
    print(f"{len(train)} images to train on, {len(held_out)} held out", flush=True)
    done = subprocess.run([*COMMAND, "finetune", "--config", str(config)], check=False)
    if done.returncode:
        sys.exit(done.returncode)  # the command has said why
    print(f"Serve it:    {program()} serve {out}")
    print(f"Evaluate it: {program()} evaluate --config {evaluate}")


if __name__ == "__main__":
    main()
