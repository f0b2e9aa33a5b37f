"""The playground in headless browsers, in front of a real vLLM engine with the demo model.

``make test-playground``. Scenarios are in ``scenarios.mjs``, ``chats.mjs`` and ``seeing.mjs``; all
run in Chromium and in Firefox (``VORA_BROWSERS=firefox`` selects). Faults that no real engine has
(hostile answers, breaking off) come from the fake engine of the gateway's tests.
``VORA_SCREENSHOTS=docs/images/playground`` makes the images of the docs along the way,
``VORA_TEST_ENGINE=URL`` takes an engine that runs already.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.playground.conftest import DEMO, HERE, SPECIALISTS, find_browser
from tests.playground.engine import explainer_on_demand, running_engine, running_host
from tests.vora_serve.gateway.fake_engine import FakeEngine, ThreadServer, running
from vora_serve.gateway import create_app, load_settings
from vora_serve.gateway.admission import hash_key
from vora_serve.world.digits import random_digit
from vora_serve.world.scenes import random_scene, render

# Generous: a browser, an engine and a model to look into share what may be two busy cores.
pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]

SCENARIOS = [
    name
    for file in ("scenarios.mjs", "chats.mjs", "seeing.mjs")
    for name in re.findall(r"^export async function (\w+)", (HERE / file).read_text("utf-8"), re.M)
]
BROWSERS = os.environ.get("VORA_BROWSERS", "chromium,firefox").split(",")
REPORT = HERE.parents[1] / "docs" / "measurements" / "loadtest-cpu-0.5b" / "report.html"
KEY = "sk-vora-test-0123456789abcdef"
WATCH_KEY = "sk-vora-test-watcher-0123456789"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
HOSTILE = """**bold** `code`

- item

<img src=x onerror="window.pwned=1"><svg onload="window.pwned=1"></svg>
<script>window.pwned=1</script><iframe srcdoc="<script>parent.pwned=1</script>"></iframe>

<details open ontoggle="window.pwned=1"><summary>x</summary></details>
<style>body{display:none}</style><base href="https://elsewhere.example/">

[a](javascript:window.pwned=1) [b](data:text/html,<script>1</script>) [c](vbscript:x)
[d](JaVaScRiPt:window.pwned=1) [e](https://example.org/ok) <javascript:window.pwned=1>
![p](https://elsewhere.example/pixel.png) ![q](x" onerror="window.pwned=1)
[f]: javascript:window.pwned=1
[f] <https://example.org> &lt;img src=x onerror=window.pwned=1&gt;

```html"><img src=x onerror=window.pwned=1>
<img src=x onerror=window.pwned=1>
```

| <img src=x onerror=window.pwned=1> | `b` |
|---|---|
| [x](javascript:window.pwned=1) | <math><mtext></mtext></math> |
"""


RICH = """Code:

```python
def area(r):
    return 3.14 * r ** 2  # rough
```

```nolanguage
def plain
```

It costs $5 and $10. Inline $x^2$, and

$$\\int_0^1 x\\,dx = \\frac{1}{2}$$

$\\notamacro{$ stays.
"""
STRICT = {"max_bytes": 40_000, "max_pixels": 90_000}


def words(text: str) -> list[str]:
    """The text in the pieces that an engine sends."""
    return re.findall(r"\s*\S+|\s+$", text)


class Quiet(SimpleHTTPRequestHandler):
    """A web server that does not write to the terminal."""

    def log_message(self, format: str, *args: Any) -> None:
        return


def gateway(stack: ExitStack, *urls: str, **tree: Any) -> str:
    """A gateway over a real socket; its address."""
    tree.setdefault("logging", {"access": False})
    server = ThreadServer(create_app(load_settings(flags={"upstreams": list(urls), **tree})))
    port = server.start()
    stack.callback(server.stop)
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of images that the model was not trained on, and what two of them show."""
    folder = tmp_path_factory.mktemp("images")
    image = render(random_scene(11, "test", 0))
    image.save(folder / "three.png")  # for the eye
    scene = random_scene(7, "test", 0)  # a single shape, which leaves the model no doubt
    render(scene).save(folder / "scene.png")
    image.resize((image.width * 5, image.height * 5)).save(folder / "large.png")
    digit = random_digit(7, "test", 0)
    digit.image.save(folder / "digit.png")
    (folder / "text.png").write_text("not an image", encoding="utf-8")
    (folder / "bare.html").write_text("<!doctype html><title>bare</title>", encoding="utf-8")
    [thing] = scene.things
    shown = {"count": "one", "digit": NUMBERS[digit.digit]}
    return folder, shown | {"shape": thing.shape, "colour": thing.colour}


@pytest.fixture(scope="session")
def world(
    images: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Everything that runs behind the browsers, for ``browser.mjs``."""
    folder = tmp_path_factory.mktemp("browser")
    keys = folder / "keys.yaml"
    keys.write_text(
        f"keys:\n  - {{name: a, sha256: {hash_key(KEY)}}}\n"
        f"  - {{name: watcher, sha256: {hash_key(WATCH_KEY)}, scopes: [metrics]}}\n",
        encoding="utf-8",
    )
    folder_of_images, shown = images
    screenshots = os.environ.get("VORA_SCREENSHOTS", "")
    if screenshots:
        Path(screenshots).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        real = stack.enter_context(running_engine(folder, DEMO, "vora-demo", "vora-demo-b"))
        web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder_of_images)))
        stack.callback(web.server_close)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        stack.callback(web.shutdown)
        hostile = stack.enter_context(running(FakeEngine(words=words(HOSTILE))))
        rich = stack.enter_context(running(FakeEngine(words=words(RICH))))
        dying = stack.enter_context(running(FakeEngine(die_after=2, delay_s=0.05)))
        host = stack.enter_context(running_host(folder, SPECIALISTS, "shapes", "digits"))
        images = {"allow_networks": ["127.0.0.1/32"]}
        prices: dict[str, Any] = {
            "price_per_million_input_tokens": 0.2,
            "price_per_million_output_tokens": 0.6,
        }
        prices["explain_url"] = stack.enter_context(explainer_on_demand(DEMO))
        web_url = f"http://127.0.0.1:{web.server_address[1]}"
        yield {
            "images": str(folder_of_images),
            "web": web_url,
            "bare": f"{web_url}/bare.html",
            **shown,
            "key": KEY,
            "watchKey": WATCH_KEY,
            "hostileText": HOSTILE,
            "screenshots": str(Path(screenshots).resolve()) if screenshots else None,
            "report": REPORT.as_uri(),
            "real": gateway(stack, real, images=images, playground=prices),
            "keyed": gateway(stack, real, images=images, auth={"keys_file": str(keys)}),
            "adapters": gateway(stack, host, images=images),
            "down": gateway(stack, "http://127.0.0.1:9"),
            "hostile": gateway(stack, hostile.url),
            "rich": gateway(stack, rich.url),
            "strict": gateway(stack, real, images={**images, **STRICT}),
            "dying": gateway(stack, dying.url),
            "command": gateway(
                stack,
                real,
                engine={"model": str(DEMO)},
                playground={"explain_url": f"unix:{folder}/none.sock"},
            ),
        }


@pytest.fixture(scope="session", params=BROWSERS)
def results(
    request: pytest.FixtureRequest,
    node: str,
    modules: Path,
    world: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What each scenario came to in a browser; all in one process of it."""
    assert modules.is_dir()
    browser = request.param
    folder = tmp_path_factory.mktemp(browser)
    given, out = folder / "world.json", folder / "results.json"
    here = {"browser": browser, "program": find_browser(browser)}
    if browser != "chromium":
        here["screenshots"] = None  # of one browser is enough
    given.write_text(json.dumps({**world, **here}), encoding="utf-8")
    command = [node, str(HERE / "browser.mjs"), str(given), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return {**found, "browser": browser}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(results: dict[str, Any], scenario: str) -> None:
    if scenario not in results and os.environ.get("SCENARIO"):
        pytest.skip("SCENARIO names others")
    result = results[scenario]
    if result.get("skipped"):
        pytest.skip(result["skipped"])
    assert result["ok"], result["error"]


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
def test_the_code_it_gives_runs_and_answers_the_same(
    results: dict[str, Any],
    images: tuple[Path, dict[str, str]],
    modules: Path,
    node: str,
    tmp_path: Path,
    language: str,
) -> None:
    if results["browser"] != "chromium":
        pytest.skip("the code names the proxy, which has ended with the browser")
    kept = results["code_runs_elsewhere"]["kept"]
    assert kept is not None, "the scenario failed"
    (tmp_path / "scene.png").write_bytes((images[0] / "scene.png").read_bytes())
    (tmp_path / "node_modules").symlink_to(modules)
    name, command = {
        "curl": ("ask.sh", ["bash"]),
        "python": ("ask.py", [sys.executable]),
        "javascript": ("ask.mjs", [node]),
    }[language]
    (tmp_path / name).write_text(kept["code"][language], encoding="utf-8")
    run = subprocess.run(
        [*command, name], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout
    if language == "curl":
        events = [line[6:] for line in said.splitlines() if line.startswith("data: {")]
        said = "".join(
            choice["delta"].get("content") or ""
            for event in events
            for choice in json.loads(event)["choices"]
        )
    assert said.split() == kept["said"].split()
