"""Every setting and every HTTP field that users can give is explained in the reference."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vora_serve.gateway import create_app, load_settings, settings
from vora_serve.gateway.descriptions import FIELDS, describe
from vora_serve.gateway.settings import Section

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """What the site's builder reads settings' docstrings with."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sections() -> list[type[Section]]:
    """Every section of the settings, wherever in the package."""
    found = []
    for info in pkgutil.iter_modules(settings.__path__):
        module = importlib.import_module(f"{settings.__name__}.{info.name}")
        found += [
            thing
            for thing in vars(module).values()
            if inspect.isclass(thing)
            and issubclass(thing, Section)
            and thing.__module__ == module.__name__
        ]
    return found


def unexplained(hooks: ModuleType, section: type[Section]) -> list[str]:
    """Its fields without a sentence below them."""
    notes = hooks.docstrings(section)
    return [
        f"{section.__name__}.{name}"
        for name in section.model_fields
        if not notes.get(name, "").strip().endswith(".")
    ]


@pytest.mark.parametrize("section", sections(), ids=lambda section: str(section.__name__))
def test_every_setting_is_explained(hooks: ModuleType, section: type[Section]) -> None:
    assert section.model_fields or section is Section
    assert unexplained(hooks, section) == []


class Silent(Section):
    """The control: one field explained, one not."""

    told: int = 1
    """Explained."""
    silent: int = 2


def test_the_test_finds_a_setting_without_a_sentence(hooks: ModuleType) -> None:
    assert len(sections()) > 12
    assert unexplained(hooks, Silent) == ["Silent.silent"]


def openapi() -> dict[str, Any]:
    """What ``/openapi.json`` serves, with everything switched on."""
    app = create_app(load_settings(flags={"upstreams": ["http://127.0.0.1:9"]}))
    return app.openapi()


def silent_fields(node: Any, where: str = "") -> list[str]:
    """Fields and parameters anywhere below that say nothing of themselves."""
    if isinstance(node, list):
        return [found for each in node for found in silent_fields(each, where)]
    if not isinstance(node, dict):
        return []
    properties = node.get("properties")
    found = [
        f"{where}.{name}"
        for name, field in (properties.items() if isinstance(properties, dict) else ())
        if not field.get("description")
    ]
    parameters = node.get("parameters")
    if isinstance(parameters, list):
        found += [f"{where} {p['name']}" for p in parameters if not p.get("description")]
    return found + [item for key, each in node.items() for item in silent_fields(each, key)]


def test_every_http_field_is_explained() -> None:
    assert silent_fields(openapi()) == []


def test_the_test_finds_a_field_without_a_description() -> None:
    field: dict[str, Any] = {"properties": {"no_such_field": {}, "seed": {}}}
    document: dict[str, Any] = {"paths": {}, "components": {"schemas": {"A": field}}}
    describe(document)
    assert silent_fields(document) == ["A.no_such_field"]
    assert field["properties"]["seed"]["description"] == FIELDS["seed"]
