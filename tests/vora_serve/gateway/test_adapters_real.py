"""Vision adapters end to end: the command, a real engine over HTTP, changed while it answers."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model_plugin import VoRAForCausalLM, VoRAProcessor
from tests.model_plugin.conftest import noise_image
from tests.model_plugin.engine.harness import needs_vllm
from tests.model_plugin.engine.hosts import World, make_world
from tests.vora_serve.gateway.real_engine import Served, command
from tests.vora_serve.gateway.test_tenants import write_keys
from vora_core.adapter import ADAPTER_FILE, EMBEDDER_FILE

pytestmark = [needs_vllm, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

IMAGE = noise_image(168, 98, 2)
TOKENS = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


class Site:
    """The running command, its keys and its adapters' folder."""

    def __init__(self, served: Served, keys: dict[str, str], folder: Path) -> None:
        self.served, self.keys, self.folder = served, keys, folder

    def call(self, method: str, path: str, key: str = "ops", **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[key]}"}
        url = self.served.url + path
        return httpx.request(method, url, headers=headers, timeout=120, **more)

    def ask(self, model: str, image: Image.Image | None = None, **more: Any) -> httpx.Response:
        body = {
            "model": model,
            "messages": conversation(image, as_url=True),
            "max_tokens": TOKENS,
            "ignore_eos": True,
            **more,
        }
        return self.call("POST", "/v1/chat/completions", "user", json=body)

    def engine(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Behind the gateway."""
        transport = httpx.HTTPTransport(uds=self.served.engine_socket())
        with httpx.Client(transport=transport, base_url="http://engine") as client:
            return client.request(method, path, timeout=60, **more)


def conversation(image: Image.Image | None, *, as_url: bool = False) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": "Tell me about it."}]
    if image is not None and as_url:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    elif image is not None:
        content.append({"type": "image", "image": image})
    return [{"role": "user", "content": content}]


@torch.no_grad()
def twin_says(merged: Path, image: Image.Image | None) -> str:
    """What the merged twin answers, by transformers, greedily."""
    model = VoRAForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    processor = VoRAProcessor.from_pretrained(merged)
    inputs = processor.apply_chat_template(
        conversation(image),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids, pixels = inputs["input_ids"], {k: inputs[k] for k in inputs if k.startswith(("pix", "im"))}
    start = ids.shape[1]
    for _ in range(TOKENS):
        logits = model(input_ids=ids, **pixels).logits[0, -1]
        ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    said = str(processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True))
    return whole(said)


def whole(said: str) -> str:
    """An answer without a character that was cut at its end, which servers leave out."""
    return said.rstrip("\N{REPLACEMENT CHARACTER}")


@pytest.fixture(scope="module")
def site(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    tmp = tmp_path_factory.mktemp("site")
    folder = tmp / "adapters"
    folder.mkdir()
    for name in ("shapes", "other"):
        shutil.copytree(world.adapters[name], folder / name)
    (folder / "outside").symlink_to(world.adapters["docs"])
    keys = write_keys(tmp / "keys.yaml", ops={"scopes": ["admin", "models"]}, user={})
    with command(
        tmp,
        *("--model", str(world.llm), "--served-model-name", "base", "--verbose"),
        *("--vision-adapter", f"docs={world.adapters['docs']}"),
        *("--adapters-folder", str(folder), "--keys", str(tmp / "keys.yaml")),
        *("--max-adapters", "2", "--dtype", "float32", "--max-model-len", "512"),
        "--enforce-eager",
    ) as served:
        yield Site(served, keys, folder)


def test_each_name_answers_as_its_twin(site: Site, world: World) -> None:
    cards = site.call("GET", "/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["base", "docs"]
    for image in (IMAGE, None):
        answer = site.ask("docs", image)
        assert answer.status_code == 200, answer.text
        said = whole(answer.json()["choices"][0]["message"]["content"])
        assert said == twin_says(world.merged["docs"], image)
        assert answer.json()["model"] == "docs"
    # The LLM alone, by its own chat template, is what the twin would be without its update.
    answer = site.ask("base")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] != said


def test_the_llm_alone_says_that_it_sees_nothing(site: Site) -> None:
    refused = site.ask("base", IMAGE)
    assert refused.status_code == 400
    assert "answers text only" in refused.json()["error"]["message"]
    assert "docs" in refused.json()["error"]["message"]


def test_a_part_of_an_adapters_name_chooses_nothing(site: Site) -> None:
    """vLLM would choose an adapter by the type of a message's part; by model name alone here."""
    plain = site.engine("POST", "/v1/chat/completions", json=_engine_body("text"))
    odd = site.engine("POST", "/v1/chat/completions", json=_engine_body("docs_text"))
    assert plain.status_code == 200, plain.text
    if odd.status_code == 200:
        assert odd.json()["choices"] == plain.json()["choices"]


def _engine_body(kind: str) -> dict[str, Any]:
    content = [{"type": kind, "text": "Tell me about it."}]
    return {
        "model": "base",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }


def test_load_use_drop_reload_under_load(site: Site, world: World) -> None:
    """Nothing that was admitted fails, other names never notice, and memory is given back."""
    wanted = {
        "docs": twin_says(world.merged["docs"], IMAGE),
        "shapes": twin_says(world.merged["shapes"], IMAGE),
    }
    answers: list[tuple[str, int, str]] = []
    stop = threading.Event()

    def client(name: str) -> None:
        while not stop.is_set():
            answer = site.ask(name, IMAGE)
            said = ""
            if answer.status_code == 200:
                said = whole(answer.json()["choices"][0]["message"]["content"])
            answers.append((name, answer.status_code, said))

    with ThreadPoolExecutor(4) as pool:
        for name in ("docs", "docs", "shapes", "shapes"):
            pool.submit(client, name)
        try:
            for _ in range(3):
                body = {"name": "shapes", "folder": "shapes"}
                loaded = site.call("POST", "/admin/adapters", json=body)
                assert loaded.status_code == 200, loaded.text
                seen = len(answers)
                while len(answers) < seen + 12:
                    assert not stop.wait(0.05)
                full = {"name": "third", "folder": "other"}
                assert site.call("POST", "/admin/adapters", json=full).status_code == 409
                dropped = site.call("DELETE", "/admin/adapters/shapes")
                assert dropped.status_code == 200, dropped.text
                left = site.engine("GET", "/v1/vision_adapters").json()
                assert [card["name"] for card in left["data"]] == ["docs"]
                assert left["room"] == 1
        finally:
            stop.set()
    assert {code for name, code, _ in answers if name == "docs"} == {200}
    assert {code for name, code, _ in answers if name == "shapes"} == {200, 404}
    for name, code, said in answers:
        assert code != 200 or said == wanted[name]


def test_memory_is_given_back(site: Site, world: World) -> None:
    """A large embedder, loaded, used and dropped again and again while another name answers."""
    size = write_large(world.adapters["docs"], site.folder / "large", width=2**15)

    def resident() -> int:
        return sum(process.memory_info().rss for process in site.served.engine_processes())

    stop, failed = threading.Event(), list[str]()

    def others() -> None:
        while not stop.is_set():
            if (answer := site.ask("docs", IMAGE)).status_code != 200:
                failed.append(answer.text)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(others)
        try:
            loaded, dropped = [], []
            for _ in range(6):
                body = {"name": "large", "folder": "large"}
                assert site.call("POST", "/admin/adapters", json=body).status_code == 200
                assert site.ask("large", IMAGE).status_code == 200
                loaded.append(resident())
                assert site.call("DELETE", "/admin/adapters/large").status_code == 200
                dropped.append(resident())
        finally:
            stop.set()
    assert not failed
    # The first round also touches buffers that stay; what leaks would grow with every round.
    for up, down in zip(loaded[1:], dropped[1:], strict=True):
        assert up - down > 0.7 * size
    assert max(dropped[1:]) - dropped[0] < 0.5 * size


def write_large(adapter: Path, folder: Path, width: int) -> int:
    """Copy an adapter with a random embedder of another width; returns the embedder's bytes."""
    shutil.copytree(adapter, folder)
    settings = json.loads((folder / ADAPTER_FILE).read_text())
    before = settings["vision"]["vision_embedding_intermediate_size"]
    settings["vision"]["vision_embedding_intermediate_size"] = width
    (folder / ADAPTER_FILE).write_text(json.dumps(settings))
    tensors = {}
    for name, tensor in load_file(folder / EMBEDDER_FILE).items():
        shape = [width if side == before else side for side in tensor.shape]
        tensors[name] = torch.full(shape, 0.01)
    save_file(tensors, folder / EMBEDDER_FILE)
    return (folder / EMBEDDER_FILE).stat().st_size


def test_only_the_configured_folder(site: Site) -> None:
    """Neither through links, nor by the engine's own routes, whoever reaches its socket."""
    for folder in ("outside", "missing"):
        body = {"name": "x", "folder": folder}
        refused = site.call("POST", "/admin/adapters", json=body)
        assert refused.status_code == 404, refused.text
        assert site.engine("POST", "/v1/vision_adapters", json=body).status_code == 404
    for folder in ("../adapters", "/etc", "..", ".", ""):
        body = {"name": "x", "folder": folder}
        assert site.engine("POST", "/v1/vision_adapters", json=body).status_code in (400, 404)
    own = {"lora_name": "x", "lora_path": str(site.folder / "shapes")}
    assert site.engine("POST", "/v1/load_lora_adapter", json=own).status_code == 404
    assert site.engine("POST", "/v1/vision_adapters", content=b"{").status_code == 400
