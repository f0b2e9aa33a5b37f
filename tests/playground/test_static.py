"""The playground's files and routes, without a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.playground.conftest import DEMO, STATIC
from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine
from vora_core.errors import ImageError
from vora_core.geometry import ImageSettings
from vora_serve.gateway.admission import hash_key

OWN = sorted(path for path in STATIC.iterdir() if path.suffix in (".js", ".html", ".css"))


def test_every_file_is_served_under_the_strict_policy(gateway: LiveGateway) -> None:
    served = [path for path in STATIC.rglob("*") if path.is_file() and path.suffix != ".md"]
    assert len(served) > 12
    for path in served:
        response = gateway.client.get(f"/playground/{path.relative_to(STATIC)}")
        assert response.status_code == 200, path
        assert response.content == path.read_bytes()
        policy = response.headers["content-security-policy"]
        for part in (
            "default-src 'none'",
            "script-src 'self'",
            "require-trusted-types-for",
            "form-action 'none'",
        ):
            assert part in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        again = gateway.client.get(
            f"/playground/{path.relative_to(STATIC)}",
            headers={"if-none-match": response.headers["etag"]},
        )
        assert again.status_code == 304
    page = gateway.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.content == (STATIC / "index.html").read_bytes()
    page = gateway.client.get("/operate")
    assert page.content == (STATIC / "operate.html").read_bytes()
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["../routes.py", "%2e%2e/routes.py", "vendor/README.md", "vendor/", "no.js", ""]
)
def test_nothing_but_these_files_is_served(gateway: LiveGateway, path: str) -> None:
    assert gateway.client.get(f"/playground/{path}").status_code == 404


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_own_files_use_nothing_from_elsewhere_and_make_no_markup(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for address in re.findall(r"""(?:src|href|from|import|url)\s*[=(]?\s*["'](https?:)?//""", text):
        pytest.fail(f"{path.name} reaches for {address}")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "DOMParser",
        "new Function",
        "srcdoc",
    ):
        assert word not in text
    if path.suffix == ".html":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)


def link(node: str, *modules: Path) -> subprocess.CompletedProcess[str]:
    program = Path(__file__).parent / "link.mjs"
    command = [node, "--no-warnings", "--experimental-vm-modules", str(program), *map(str, modules)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_pages_modules_parse_and_link(node: str, tmp_path: Path) -> None:
    modules = [path for path in OWN if path.suffix == ".js"]
    assert link(node, *modules).returncode == 0, link(node, *modules).stderr
    # What it is for: a name declared twice, or imported from where it is not.
    for source in ("const a = 1; const a = 2;", 'import { none } from "./other.js";'):
        (tmp_path / "other.js").write_text("export const one = 1;", encoding="utf-8")
        (tmp_path / "broken.js").write_text(source, encoding="utf-8")
        assert "SyntaxError" in link(node, tmp_path / "broken.js").stderr


def test_it_can_be_switched_off(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, playground={"enabled": False})
    for path in (
        "/",
        "/operate",
        "/operate/metrics",
        "/playground/main.js",
        "/playground/settings.json",
        "/playground/image",
    ):
        assert gateway.client.get(path).status_code == 404
    assert gateway.client.get("/health").status_code == 200


def test_the_page_loads_without_a_key_but_looks_at_no_image(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys:\n  - {{name: a, sha256: {hash_key('sk-secret')}}}\n", encoding="utf-8")
    gateway = start_gateway(engine.url, auth={"keys_file": str(keys)})
    assert gateway.client.get("/").status_code == 200
    assert gateway.client.get("/playground/main.js").status_code == 200
    assert gateway.client.get("/playground/settings.json").json()["keys_needed"] is True
    url = "data:image/png;base64," + base64.b64encode(make_image()).decode()
    asked = {"url": url}
    assert gateway.client.post("/playground/image", json=asked).status_code == 401
    headers = {"authorization": "Bearer sk-secret"}
    told = gateway.client.post("/playground/image", json=asked, headers=headers)
    assert told.status_code == 200
    assert told.json()["url"].startswith("data:image/png;base64,")


def test_the_api_page_works_without_a_network_and_without_the_playground(
    engine: FakeEngine, start_gateway: Start
) -> None:
    gateway = start_gateway(engine.url, playground={"enabled": False})
    page = gateway.client.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    needed = set(re.findall(r"/playground/[\w.]+", page.text))
    for name in [path.name for path in OWN if f"/playground/{path.name}" in needed]:
        text = (STATIC / name).read_text(encoding="utf-8")
        needed |= {f"/playground/{found}" for found in re.findall(r'from "\./([\w./]+)"', text)}
    assert len(needed) >= 5
    for path in needed:
        assert gateway.client.get(path).status_code == 200, path
    off = start_gateway(engine.url, server={"docs": False}, playground={"enabled": False})
    for path in ("/docs", "/openapi.json", "/playground/docs.js"):
        assert off.client.get(path).status_code == 404


def test_the_operators_numbers_ask_for_their_scope(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        f"keys:\n  - {{name: user, sha256: {hash_key('sk-user')}}}\n"
        f"  - {{name: watcher, sha256: {hash_key('sk-watch')}, scopes: [metrics]}}\n",
        encoding="utf-8",
    )
    gateway = start_gateway(engine.url, auth={"keys_file": str(keys)})

    def status(key: str | None) -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return gateway.client.get("/operate/metrics", headers=headers).status_code

    assert gateway.client.get("/operate").status_code == 200
    assert (status(None), status("sk-user"), status("sk-watch")) == (401, 403, 200)
    assert gateway.client.post("/operate/metrics").status_code in (401, 405)
    off = start_gateway(engine.url, playground={"operate": False})
    for path in ("/operate", "/operate/metrics"):
        assert off.client.get(path).status_code == 404
    assert off.client.get("/").status_code == 200


def test_images_are_looked_at_under_the_rules_for_images(gateway: LiveGateway) -> None:
    post = gateway.client.post
    for url in (
        "http://127.0.0.1:1/a.png",
        "file:///etc/passwd",
        "data:text/html,<b>",
        "http://a\\b/",
    ):
        response = post("/playground/image", json={"url": url})
        assert response.status_code == 400, url
        assert response.json()["error"]["message"]
    assert post("/playground/image", json={"address": "x"}).status_code == 400
    assert (
        post(
            "/playground/image", content=b"{", headers={"content-type": "application/json"}
        ).status_code
        == 400
    )
    assert post("/playground/image", content=b"url=x").status_code == 415


def test_looks_count_as_requests(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, admission={"requests": ["2/minute"]})
    url = "data:image/png;base64," + base64.b64encode(make_image()).decode()
    codes = [
        gateway.client.post("/playground/image", json={"url": url}).status_code for _ in range(3)
    ]
    assert codes == [200, 200, 429]


def test_model_cards_tell_geometry(engine: FakeEngine, start_gateway: Start) -> None:
    known = start_gateway(engine.url, playground={"checkpoints": {"vora-test": str(DEMO)}})
    told = known.client.get("/v1/models").json()["data"][0]["vora"]
    assert told["image"] == {
        "resolution": "native", "patch_size": 8, "merge_size": 1,
        "min_pixels": 2304, "max_pixels": 4608,
    }  # fmt: skip
    # 6 layers, K and V, 4 heads of 32, bfloat16
    assert told["kv_bytes_per_token"] == 6 * 2 * 4 * 32 * 2
    unknown = start_gateway(engine.url)
    assert unknown.client.get("/v1/models").json()["data"][0]["vora"] is None


PROCESSORS = [
    {"resolution": "native"},
    {"resolution": "native", "min_pixels": 2304, "max_pixels": 4608},
    {"resolution": "native", "min_pixels": 1, "max_pixels": 10**6},
    {"size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}},
    {"size": {"shortest_edge": 224}},
    {"size": 256, "crop_size": 224},
    {},
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda value: json.dumps(value)[:40])
def test_the_page_computes_sizes_as_the_model_does(node: str, processor: dict[str, object]) -> None:
    draw = random.Random(7)
    config = {"patch_size": draw.choice([8, 14]), "spatial_merge_size": draw.choice([1, 2])}
    settings = ImageSettings.from_dict(
        processor, patch_size=config["patch_size"], merge_size=config["spatial_merge_size"]
    )
    sizes, expected = [], []
    while len(sizes) < 400:
        size = (draw.randint(2, 3000), draw.randint(2, 3000))
        if len(sizes) % 4 == 0:  # halves of a patch, where rounding matters
            size = (7 * draw.randint(1, 60), 4 * draw.randint(1, 90))
        try:
            width, height = settings.resized(*size)
            tokens = settings.num_tokens(*size)
        except ImageError:
            continue
        sizes.append(size)
        expected.append([width, height, tokens])
    script = (
        f"import {{ served }} from {json.dumps((STATIC / 'geometry.js').as_uri())};"
        "const [image, sizes] = JSON.parse(process.argv[1]);"
        "console.log(JSON.stringify(sizes.map(([w, h]) => {"
        "const s = served(image, w, h); return [s.width, s.height, s.tokens]; })));"
    )
    given = json.dumps([settings.geometry(), sizes])
    command = [
        node,
        "--experimental-default-type=module",
        "--input-type=module",
        "-e",
        script,
        given,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(result.stdout) == expected


def test_what_is_vendored_is_what_its_table_says() -> None:
    vendor = STATIC / "vendor"
    table = (vendor / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| (\S+) \(npm\) \| ([\d.]+) \| ([\w-]+), `(\S+)`", table, re.M)
    wanted = json.loads((Path(__file__).parent / "package.json").read_text())["dependencies"]
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    assert [name for _, name, *_ in rows] == ["marked", "idb", "@highlightjs/cdn-assets", "katex"]
    for file, name, version, licence, text in rows:
        assert wanted[name] == version
        code = (vendor / file).read_text(encoding="utf-8")
        assert name == "idb" or f"{version}" in code, f"{file} is not of {version}"
        words = {"MIT": "MIT", "ISC": "ISC License", "BSD-3-Clause": "BSD 3-Clause"}[licence]
        assert words in (vendor / text).read_text(encoding="utf-8")
        assert f"{name.split('/')[0].strip('@')} {version}" in notice
    named = {"README.md", *(file for row in rows for file in (row[0], row[4]))}
    for path in vendor.rglob("*.*"):
        name = str(path.relative_to(vendor))
        assert name in named or path.parent.name == "highlight", f"{name} is in no row"


LIMITS: dict[str, object] = {
    "max_bytes": 4000, "max_pixels": 10_000, "min_side_pixels": 4, "max_aspect_ratio": 5.0,
    "max_total_bytes": 20_000, "max_total_pixels": 20_000,
}  # fmt: skip


def test_the_pages_logic_and_its_verdicts_on_images(
    node: str, engine: FakeEngine, start_gateway: Start
) -> None:
    """What the page would send, the gateway takes, and the other way round."""
    gateway = start_gateway(engine.url, images=LIMITS)
    limits = gateway.client.get("/playground/settings.json").json()["limits"]
    assert limits["max_pixels"] == 10_000
    cases = []
    for form, mode in (("PNG", "RGB"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "1"), ("PPM", "RGB")):
        for size in ((100, 100), (101, 100), (4, 20), (4, 21), (3, 9), (30, 30)):
            buffer = io.BytesIO()
            Image.new(mode, size).save(buffer, form)
            cases.append((buffer.getvalue(), size))
    noise = Image.frombytes("RGB", (60, 60), random.Random(1).randbytes(10_800))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    cases.append((buffer.getvalue(), (60, 60)))
    given, expected = [], []
    for content, (width, height) in cases:
        url = "data:image/png;base64," + base64.b64encode(content).decode()
        given.append({"limits": limits, "url": url, "width": width, "height": height})
        expected.append(
            gateway.client.post("/playground/image", json={"url": url}).status_code == 200
        )
    assert True in expected
    assert False in expected
    command = [node, "--experimental-default-type=module", "--test", "conversation.test.mjs"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
        env={**os.environ, "CASES": json.dumps(given)},
    )
    assert result.returncode == 0, result.stdout
    found = re.search(r"VERDICTS (\[.*\])", result.stdout)
    assert found is not None
    assert json.loads(found[1]) == expected
