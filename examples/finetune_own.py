"""Fine-tune the demo on a folder of your own images, one folder a label, and serve the result.

python finetune_own.py IMAGES --out my-model --question "What is this?"

    IMAGES/cat/1.png, IMAGES/cat/2.png, IMAGES/dog/1.png, ...

It writes the data as JSON lines and a recipe beside the model, so that you can change both and run
`vora-serve finetune --config RECIPE` by hand. On two cores, 100 steps take about two minutes.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import yaml

import vora_serve.demo

DEMO = Path(vora_serve.demo.__file__).parent / "checkpoint"
KINDS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def rows(images: Path, question: str) -> list[dict]:
    """A conversation for each image; the name of its folder is the answer."""
    found = [
        {
            "image": str(path.relative_to(images)),
            "conversations": [
                {"from": "human", "value": f"<image>{question}"},
                {"from": "gpt", "value": path.parent.name},
            ],
        }
        for path in sorted(images.glob("*/*"))
        if path.suffix.lower() in KINDS
    ]
    if len({row["conversations"][1]["value"] for row in found}) < 2:
        sys.exit(f"{images} needs at least two folders with images in them.")
    random.Random(1).shuffle(found)
    return found


def recipe(data: Path, arguments: argparse.Namespace) -> dict:
    """The whole recipe; `vora-serve finetune --dry-run` says what another one would take."""
    return {
        "model": {"path": arguments.model},
        "data": {"sources": [{"files": [str(data)], "image_dir": str(arguments.images.resolve())}]},
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


def main() -> None:
    """Write data and recipe, train, and say how to serve what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, default=Path("my-model"))
    parser.add_argument("--question", default="What is this?")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--model", default=str(DEMO), help="a merged VoRA checkpoint")
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"{arguments.out} is there already; give another --out.")

    data = Path(f"{arguments.out}-data.jsonl")
    lines = [json.dumps(row) for row in rows(arguments.images, arguments.question)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = Path(f"{arguments.out}-recipe.yaml")
    config.write_text(yaml.safe_dump(recipe(data, arguments), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-c", "from vora_serve.cli import main; main()"]
    subprocess.run([*command, "finetune", "--config", str(config)], check=True)
    print(f"\nServe it:\n  vora-serve serve --model {arguments.out}")


if __name__ == "__main__":
    main()
