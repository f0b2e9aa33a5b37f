"""``vora-serve explain``: attention over an image's patches, as PNG files or for the playground."""

from __future__ import annotations

import json
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vora_core.errors import ConfigError
from vora_serve.command import App

if TYPE_CHECKING:
    from PIL import Image

    from vora_serve.explain.look import Explainer, Explanation

app = App(add_completion=False)
_UNIX = "unix:"


class Dtype(StrEnum):
    """What the weights are loaded as."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


@app.command(needs="model")
def explain(
    model: Annotated[str, typer.Option(help="VoRA checkpoint: directory or hub id.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="Image file; repeatable, in the order of the prompt.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Question about the images.")] = "What do you see?",
    answer: Annotated[str | None, typer.Option(help="Answer to explain [the model's own].")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Vision transformer to compare the blocks with.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("explained"),
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="PORT|unix:PATH",
            help="Serve the playground on this port of 127.0.0.1, or on this socket, instead.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; auto: the checkpoint's own.")] = (
        Dtype.FLOAT32
    ),
) -> None:
    """Show where the model looks: attention from each token of an answer to each image patch.

    Writes PNG files per image (all layers, all tokens) and attention.json with the numbers. The
    model runs with transformers.

    Example: vora-serve explain --model vora_serve/demo/checkpoint --image scene.png \
        --prompt "How many shapes are there?"
    """
    if listen is None and not image:
        raise ConfigError("Pass an image with --image, or --listen PORT to serve the playground.")
    for path in image or []:
        if not path.is_file():
            raise ConfigError(f"The image {path} does not exist.")
    listener = _bind(listen) if listen is not None else None
    import torch
    import transformers

    from vora_serve.explain.look import Explainer

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"The device {device} is not available; use --device cpu.")
    weights = None if dtype is Dtype.AUTO else getattr(torch, dtype.value)
    explainer = Explainer(model, teacher, weights, device)
    if listener is not None:
        from vora_serve.explain.server import serve

        _say(f"serving attention of {model}; explain_url: {_address(listener)}")
        try:
            serve(explainer, listener)
        finally:
            if listener.family == socket.AF_UNIX:
                Path(str(listen).removeprefix(_UNIX)).unlink(missing_ok=True)
        return
    assert image is not None
    _write(explainer, image, prompt, answer, out)


def _bind(listen: str) -> socket.socket:
    """The socket that ``--listen`` names; port 0 becomes a free one.

    Raises:
        ConfigError: it is neither a port nor a socket's path, or is in use.
    """
    from vora_serve.gateway.listen import bind, bind_unix

    if listen.startswith(_UNIX):
        return bind_unix(Path(listen.removeprefix(_UNIX)))
    if not listen.isascii() or not listen.isdigit() or int(listen) > 65535:
        raise ConfigError(f"--listen takes a port or unix:PATH, not {listen!r}.")
    return bind("127.0.0.1", int(listen))


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"{_UNIX}{name}" if listener.family == socket.AF_UNIX else f"http://127.0.0.1:{name[1]}"


def _write(
    explainer: Explainer, paths: list[Path], prompt: str, answer: str | None, out: Path
) -> None:
    from model_plugin.decoding import decode
    from model_plugin.errors import ImageError

    images = []
    for path in paths:
        try:
            images.append(decode(path.read_bytes())[0])
        except (ImageError, OSError):
            raise ConfigError(f"{path} is not an image that can be read.") from None
    content: list[dict[str, Any]] = [{"type": "image", "image": each} for each in images]
    content.append({"type": "text", "text": prompt})
    result = explainer.explain([{"role": "user", "content": content}], answer)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "attention.json").write_text(json.dumps(result.as_json()), encoding="utf-8")
        for index, image in enumerate(images):
            _draw(explainer, result, index, image, out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}.") from error
    _report(result, out)


def _draw(
    explainer: Explainer, result: Explanation, index: int, image: Image.Image, out: Path
) -> None:
    from vora_serve.explain.draw import overlay, sheet
    from vora_serve.explain.look import served_image

    served = served_image(image, explainer.processor.settings)
    weights = result.of_image(index)
    name = f"image-{index + 1}"
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
    _say("layer  attention on images" + ("  similarity to teacher" if result.similarity else ""))
    for layer in range(share.shape[1]):
        line = f"{layer + 1:5d}  {share[:, layer].mean():18.1%}"
        if result.similarity and layer < len(result.similarity):
            line += f"  {result.similarity[layer]:21.3f}"
        _say(line)
    if result.measure:
        _say(f"(similarity: {result.measure}, mean over patches)")
    _say(f"Wrote images and numbers to {out}.")
