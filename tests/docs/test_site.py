"""The documentation's site: built strictly, links checked, nothing from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
#: Ten seconds on idle cores; the bound is for busy ones.
pytestmark = pytest.mark.timeout(1800)


class Page(HTMLParser):
    """Links, anchors and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = {""}
        self.images_without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "name" in given:
            self.anchors.add(given["name"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(given.get("href", ""))
        if tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loaded.append(given["src"])
        if tag == "img" and not given.get("alt"):
            self.images_without_text.append(given.get("src", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet: with it, mkdocs does not count the warnings that --strict should stop at.
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=1500,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def targets(page: Page) -> Iterator[str]:
    for link in page.links + page.loaded:
        if not urlsplit(link).scheme and not link.startswith("//"):
            yield link


def broken(pages: dict[Path, Page], site: Path) -> list[str]:
    """Links within the site that lead nowhere."""
    found = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are absolute
        for link in targets(page):
            target, anchor = urldefrag(link)
            where = (path.parent / unquote(urlsplit(target).path)).resolve() if target else path
            if where.is_dir():
                where = where / "index.html"
            if not where.exists():
                found.append(f"{path.relative_to(site)}: {link}")
            elif where in pages and unquote(anchor) not in pages[where].anchors:
                found.append(f"{path.relative_to(site)}: no anchor {link}")
    return found


def test_links_lead_somewhere(pages: dict[Path, Page], site: Path) -> None:
    assert len(pages) > 18
    assert broken(pages, site) == []


def test_the_check_of_links_finds_broken_ones(site: Path) -> None:
    path = site / "index.html"
    for link in ("nowhere/", "quickstart/#no-such-anchor"):
        page = Page(f'<a href="{link}">x</a>')
        others = {site / "quickstart" / "index.html": Page("<h1 id=quick-start></h1>")}
        assert broken({path: page, **others}, site)


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        away = [source for source in page.loaded if urlsplit(source).netloc]
        assert not away, f"{path.name} loads {away}"


def test_images_have_text(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not page.images_without_text, path


def test_written_pages_hold_everything(site: Path) -> None:
    from vora_serve.gateway import create_app, load_settings
    from vora_serve.gateway.settings import Settings

    def text(name: str) -> str:
        return (site / "reference" / name / "index.html").read_text(encoding="utf-8")

    for command in ("serve", "engine", "chat", "explain", "pretrain", "config check", "keys new"):
        assert f"vora-serve {command}" in text("cli"), command
    for name, field in Settings.model_fields.items():
        assert name in text("settings")
        for key in getattr(field.annotation, "model_fields", {}):
            shown = (f"<code>{key}</code>", f"<code>{name}.{key}</code>")  # a section has a heading
            assert any(form in text("settings") for form in shown), f"{name}.{key}"
    app = create_app(load_settings(flags={"upstreams": ["http://127.0.0.1:9"]}))
    for path in app.openapi()["paths"]:
        assert path in text("http")
    for name in ("VoRAForCausalLM", "split_segments", "create_app", "Explainer"):
        assert name in text("python")


def test_measurements_are_all_linked(site: Path) -> None:
    index = (site / "measurements" / "index.html").read_text(encoding="utf-8")
    for path in (ROOT / "docs" / "measurements").rglob("*.md"):
        name = path.parent.name if path.stem == "README" else path.stem  # a folder's own page
        assert name in index
