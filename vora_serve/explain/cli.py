"""``vora-serve explain``: attention over a picture's patches, as PNG or for the playground."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vora_serve.command import App
from vora_serve.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL import Image

    from vora_serve.explain.look import Explainer, Explanation

app = App(add_completion=False)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


@app.command()
def explain(
    model: Annotated[str, typer.Option(help="VoRA checkpoint: directory or hub id.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="Picture; repeatable, in the prompt's order.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="The question.")] = "What do you see?",
    answer: Annotated[
        str | None, typer.Option(help="The answer to explain; the model's own by default.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Vision transformer to compare blocks with.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("explained"),
    listen: Annotated[
        int | None,
        typer.Option(help="Answer the playground on this port of 127.0.0.1 instead."),
    ] = None,
) -> None:
    """Show where the model looked: attention from each token of an answer to the picture's patches.

    Writes one sheet a picture with all layers, one with all tokens, and attention.json with the
    numbers. The model runs with transformers, eagerly, in float32 on the CPU.

    Example: vora-serve explain --model vora_serve/demo/checkpoint --image scene.png \
        --prompt "How many shapes are there?"
    """
    if listen is None and not image:
        raise ConfigurationError("Give a picture with --image, or --listen PORT for playgrounds.")
    for path in image or []:
        if not path.is_file():
            raise ConfigurationError(f"The picture {path} does not exist.")
    if listen is not None:
        from vora_serve.gateway.listen import bind

        listener = bind("127.0.0.1", listen)
        listen = listener.getsockname()[1]  # of port 0, the free one that was found
    import torch
    import transformers

    from vora_serve.explain.look import Explainer

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    explainer = Explainer(model, teacher, torch.float32)
    if listen is not None:
        from vora_serve.explain.server import serve

        _say(f"looking into {model} for playgrounds: explain_url http://127.0.0.1:{listen}")
        serve(explainer, listener)
        return
    assert image is not None
    _write(explainer, image, prompt, answer, out)


def _write(
    explainer: Explainer, paths: list[Path], prompt: str, answer: str | None, out: Path
) -> None:
    from PIL import Image, ImageOps, UnidentifiedImageError

    pictures = []
    for path in paths:
        try:
            pictures.append(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        except (UnidentifiedImageError, OSError):
            raise ConfigurationError(f"{path} cannot be read as a picture.") from None
    content: list[dict[str, Any]] = [{"type": "image", "image": each} for each in pictures]
    content.append({"type": "text", "text": prompt})
    result = explainer.explain([{"role": "user", "content": content}], answer)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "attention.json").write_text(json.dumps(result.as_json()), encoding="utf-8")
        for index, picture in enumerate(pictures):
            _draw(explainer, result, index, picture, out)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error.strerror}.") from error
    _report(result, out)


def _draw(
    explainer: Explainer, result: Explanation, index: int, picture: Image.Image, out: Path
) -> None:
    from vora_serve.explain.draw import overlay, sheet
    from vora_serve.explain.look import served_picture

    served = served_picture(picture, explainer.processor.settings)
    weights = result.of_image(index)
    name = f"picture-{index + 1}"
    by_layer = [overlay(served, layer, 336) for layer in weights.mean(axis=0)]
    sheet(by_layer, 6).save(out / f"{name}-layers.png")
    by_token = [overlay(served, token, 336) for token in weights.mean(axis=1)]
    sheet(by_token, 6).save(out / f"{name}-tokens.png")
    overlay(served, weights.mean(axis=(0, 1))).save(out / f"{name}.png")
    if result.likeness is not None:
        sizes = [rows * columns for rows, columns in result.grids]
        start = sum(sizes[:index])
        maps = result.likeness[:, start : start + sizes[index]].clip(min=0)
        drawn = [overlay(served, each.reshape(result.grids[index]), 336) for each in maps]
        sheet(drawn, 6).save(out / f"{name}-teacher.png")


def _report(result: Explanation, out: Path) -> None:
    _say(f"answer: {result.answer}")
    share = result.attention.sum(axis=2)
    _say("layer  attention on pictures" + ("  like the teacher" if result.similarity else ""))
    for layer in range(share.shape[1]):
        line = f"{layer + 1:5d}  {share[:, layer].mean():20.1%}"
        if result.similarity and layer < len(result.similarity):
            line += f"  {result.similarity[layer]:16.3f}"
        _say(line)
    if result.measure:
        _say(f"(likeness: {result.measure}, mean over patches)")
    _say(f"pictures and numbers are in {out}")
