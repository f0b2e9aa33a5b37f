"""Looking into answers: held against transformers' own attention and against the textbook."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy import typing as npt
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from model_plugin.errors import VoRAError
from tests.vora_serve.gateway.fake_engine import FakeEngine, ThreadServer, running
from vora_core.errors import ConfigError
from vora_serve.cli import app as cli
from vora_serve.explain import Explainer, look
from vora_serve.explain.draw import colours, overlay
from vora_serve.explain.look import served_image
from vora_serve.explain.server import Looking, make_app
from vora_serve.explain.teacher import linear_cka, unpatchify
from vora_serve.gateway import create_app, load_settings

FIXTURES = Path(__file__).parents[2] / "fixtures" / "released_vora_tiny"
TEACHER = FIXTURES / "teacher_clip"


def ask(*names: str) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [
        {"type": "image", "image": Image.open(FIXTURES / name).convert("RGB")} for name in names
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]}]


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(FIXTURES / "pretrain", TEACHER, torch.float32)


def test_attention_is_what_transformers_gives(explainer: Explainer) -> None:
    result = explainer.explain(ask("a.png", "b.png"), "hello")
    model, processor = explainer.model, explainer.processor
    inputs = processor.apply_chat_template(
        ask("a.png", "b.png"), tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True,
    )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    said = processor.tokenizer.encode("hello", add_special_tokens=False)
    assert [processor.tokenizer.decode([token]) for token in said] == result.tokens
    ids = torch.cat([inputs["input_ids"], torch.tensor([said])], dim=1)
    with torch.no_grad():
        whole = model(
            input_ids=ids,
            pixel_values=inputs["pixel_values"],
            image_grid_hw=inputs["image_grid_hw"],
            output_attentions=True,
        ).attentions
    places = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
    for layer, weights in enumerate(whole):
        for index in range(len(said)):
            expected = weights[0, :, length - 1 + index][:, places].mean(0)
            got = torch.from_numpy(result.attention[index, layer])
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    # An off-by-one would be seen: the token's own position attends differently.
    other = whole[0][0, :, length][:, places].mean(0)
    assert not torch.allclose(torch.from_numpy(result.attention[0, 0]), other, atol=1e-4)
    parts = [result.of_image(0), result.of_image(1)]
    assert [part.shape[2:] for part in parts] == result.grids
    assert sum(part.sum() for part in parts) == pytest.approx(result.attention.sum(), rel=1e-5)
    share = result.attention.sum(axis=2)
    assert np.all((share > 0) & (share < 1))


@pytest.mark.parametrize("answer", ["hello there", "two  words\n", "a 🙂 b", "naïve"])
def test_tokens_are_found_in_the_answer(explainer: Explainer, answer: str) -> None:
    result = explainer.explain(ask("a.png"), answer)
    assert result.answer == answer
    assert result.spans[0][0] == 0
    assert result.spans[-1][1] == len(answer)
    for token, (start, end), (after, _) in zip(
        result.tokens, result.spans, [*result.spans[1:], (len(answer), 0)], strict=True
    ):
        assert end == after  # nothing between them, nothing twice
        if "\ufffd" not in token:
            assert answer[start:end] == token


def test_what_is_too_long_is_explained_as_far_as_it_goes(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = explainer.explain(ask("a.png"), "one two three four")
    most = whole.attention[:2].size + 1
    part = explainer.explain(ask("a.png"), "one two three four", most)
    assert part.tokens == whole.tokens[:2]
    assert whole.answer.startswith(part.answer)
    np.testing.assert_allclose(part.attention, whole.attention[:2], atol=1e-6)
    monkeypatch.setattr(look, "_MATRIX_BYTES", 8 * 4 * 20**2)
    with pytest.raises(VoRAError, match=r"have \d+ tokens; at most \d+ can"):
        explainer.explain(ask("a.png"), "one two three four")


def test_its_own_answer_is_the_greedy_one(explainer: Explainer) -> None:
    result = explainer.explain(ask("a.png"))
    again = explainer.explain(ask("a.png"), result.answer)
    if again.tokens == result.tokens:  # a random model's text may tokenise otherwise
        np.testing.assert_allclose(again.attention, result.attention, atol=1e-6)
    assert "<|im_end|>" not in result.answer[-10:]


def test_likeness_through_the_heads_is_one_minus_the_distillation_loss(
    explainer: Explainer,
) -> None:
    result = explainer.explain(ask("a.png"), "hello")
    assert result.measure == "cosine"
    assert result.similarity is not None and result.likeness is not None  # noqa: PT018
    assert len(result.similarity) == 2
    assert np.allclose(result.likeness.mean(axis=1), result.similarity, atol=1e-4)
    assert explainer.teacher is not None and explainer.teacher.heads is not None  # noqa: PT018
    # A teacher that says what the heads say is alike, whatever the weights.
    states = {0: torch.randn(64, 128), 1: torch.randn(64, 128)}
    heads = explainer.teacher.heads
    with torch.no_grad():
        targets = [heads.get_submodule(f"aux_layer_{block}")(states[block]) for block in states]
        losses = heads(states, targets)
    assert all(float(loss) < 1e-5 for loss in losses.values())


def test_without_heads_alignment_of_kernels_is_told() -> None:
    result = Explainer(FIXTURES / "merged", TEACHER, torch.float32).explain(ask("a.png"), "hello")
    assert result.measure == "cka"
    assert result.similarity is not None
    assert all(0 <= value <= 1 for value in result.similarity)


def test_cka_by_hand() -> None:
    x = torch.randn(40, 6)
    turned = x @ torch.linalg.qr(torch.randn(6, 6)).Q * 3 + 5
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-4)
    assert linear_cka(x, torch.randn(40, 6)) < 0.6
    a, b = x - x.mean(0), torch.randn(40, 3)
    b = b - b.mean(0)
    kernels = (a @ a.T).flatten(), (b @ b.T).flatten()
    expected = kernels[0] @ kernels[1] / (kernels[0].norm() * kernels[1].norm())
    assert linear_cka(a, b) == pytest.approx(float(expected), abs=1e-4)


def test_unpatchify_undoes_patches(explainer: Explainer) -> None:
    image = Image.open(FIXTURES / "a.png").convert("RGB")
    inputs = explainer.processor.image_processor([image], return_tensors="pt")
    h, w = inputs["image_grid_hw"][0].tolist()
    settings = explainer.processor.settings
    pixels = unpatchify(inputs["pixel_values"], h, w, settings.patch_size)
    served = served_image(image, settings)
    assert served.size == (w * settings.patch_size, h * settings.patch_size)
    mean, std = (np.asarray(v)[:, None, None] for v in (settings.image_mean, settings.image_std))
    back = (pixels.numpy() * std + mean) * 255
    assert np.abs(back.transpose(1, 2, 0) - np.asarray(served)).max() < 0.6


def test_drawn_weights_are_where_they_belong() -> None:
    weights = np.zeros((4, 8))
    weights[1, 6] = 1.0
    drawn = np.asarray(overlay(Image.new("RGB", (80, 40), (90, 90, 90)), weights, 160), int)
    assert drawn.shape == (80, 160, 3)
    brightness = drawn.sum(axis=2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (row // 20, column // 20) == (1, 6)
    steps = colours(np.linspace(0, 1, 50)).astype(int).sum(axis=1)
    assert np.all(np.diff(steps) >= -20)


def test_nothing_to_look_at_is_said(explainer: Explainer) -> None:
    with pytest.raises(VoRAError, match="no image"):
        explainer.explain([{"role": "user", "content": "hello"}], "hi")
    with pytest.raises(VoRAError, match="no answer"):
        explainer.explain(ask("a.png"), "")


def test_the_command_writes_images_and_numbers(tmp_path: Path) -> None:
    arguments = [
        "--model", str(FIXTURES / "merged"), "--image", str(FIXTURES / "a.png"),
        "--teacher", str(TEACHER), "--answer", "hello", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    from vora_serve.explain.cli import app

    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    drawn = ["image-1-layers.png", "image-1-tokens.png", "image-1.png"]
    assert names == ["attention.json", *drawn]
    data = json.loads((tmp_path / "out" / "attention.json").read_text(encoding="utf-8"))
    assert len(data["attention"]) == len(data["tokens"])
    with Image.open(tmp_path / "out" / "image-1.png") as image:
        assert max(image.size) == 672


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image", "absent.png"], "does not exist"),
        ([], "Pass an image"),
        (["--image", __file__], "is not an image that can be read"),
        (["--listen", "everywhere"], "takes a port or unix:PATH, not 'everywhere'"),
        (["--listen", "70000"], "takes a port"),
        (["--listen", "unix:/nowhere/a.sock"], "cannot be used as a socket"),
        (["--image", str(FIXTURES / "a.png"), "--device", "tpu"], "tpu is not available"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str) -> None:
    given = ["explain", "--model", str(FIXTURES / "merged"), *arguments]
    with pytest.raises(ConfigError, match=sentence):
        CliRunner().invoke(cli, given, catch_exceptions=False)


def data_url(name: str) -> str:
    buffer = io.BytesIO()
    Image.open(FIXTURES / name).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def question(url: str) -> dict[str, object]:
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "what?"},
    ]
    return {
        "model": "vora-test",
        "messages": [{"role": "user", "content": content}],
        "answer": "hello",
    }


def unpacked(told: dict[str, Any]) -> npt.NDArray[np.float64]:
    """(T, L, N) of what the server sends."""
    integers = np.frombuffer(base64.b64decode(told["weights"]), "<u2")
    top = np.asarray(told["top"])
    return integers.reshape(*top.shape, -1) / 65535 * top[:, :, None]


def test_the_server_answers_the_playground_through_the_gateway(explainer: Explainer) -> None:
    looker = ThreadServer(make_app(Looking(explainer)))
    port = looker.start()
    with running(FakeEngine()) as engine:
        flags = {
            "upstreams": [engine.url],
            "playground": {"explain_url": f"http://127.0.0.1:{port}"},
        }
        with TestClient(create_app(load_settings(flags=flags))) as client:
            assert client.get("/playground/settings.json").json()["explain"] == "ready"
            ask = question(data_url("a.png"))
            response = client.post("/playground/explain", json=ask)
            assert response.status_code == 200, response.text
            told = response.json()
            expected = explainer.explain(
                [{"role": "user", "content": [
                    {"type": "image", "image": Image.open(FIXTURES / "a.png").convert("RGB")},
                    {"type": "text", "text": "what?"},
                ]}], "hello",
            )  # fmt: skip
            assert told["tokens"] == expected.tokens
            assert np.allclose(unpacked(told), expected.attention, atol=1e-5)
            for bad in ("https://example.org/a.png", "data:image/png;base64,AAAA"):
                refused = client.post("/playground/explain", json=question(bad))
                assert refused.status_code == 400
                assert "image" in refused.json()["error"]["message"]
            assert client.post("/playground/explain", json={"x": 1}).status_code == 400
            other = client.post("/playground/explain", json={**ask, "model": "other"})
            assert other.status_code == 404
            looker.stop()
            away = client.post("/playground/explain", json=question(data_url("a.png")))
            assert away.status_code == 503
