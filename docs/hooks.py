"""Generate pages from the code when the site is built, so that they are never out of date.

Command line from the typer apps, settings from the settings' models, HTTP from the OpenAPI
document, and the changelog and contributing pages from the files at the repository's root.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Say which source the links to the repository's files mean."""
    config.extra["root"] = str(ROOT)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the written pages."""
    pages = {
        "reference/cli.md": command_line(),
        "reference/settings.md": settings(),
        "reference/http.md": http(),
        "measurements.md": measurements(),
        "changelog.md": root_page("CHANGELOG.md"),
        "contributing.md": root_page("CONTRIBUTING.md"),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from pages to files outside of docs/ become plain code: the site holds no sources."""
    src = page.file.src_uri
    # A file of the repository at the same place, or written above from one.
    folder = (ROOT / "docs" / src).parent

    def outside(match: re.Match[str]) -> str:
        text, target = match[1], match[2].split("#")[0]
        path = (folder / target).resolve()
        if not target or not path.exists():
            return match[0]
        try:
            path.relative_to(ROOT / "docs")
        except ValueError:
            return f"{text} (`{path.relative_to(ROOT)}`)"
        if path.is_dir() or path.suffix not in {".md", ".png", ".svg"}:
            return f"{text} (`{path.relative_to(ROOT)}`)"
        return match[0]

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s]+)\)", outside, markdown)


def root_page(name: str) -> str:
    """A page of the repository's root, whose links are meant from there."""
    path = ROOT / name
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {name}\n"
    return re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)


# ---------------------------------------------------------------------- command line


def command_line() -> str:
    """Every command with its options, from the typer apps."""
    import click
    from typer.main import get_command

    from vora_serve.cli import app

    lines = [
        "# Command line",
        "",
        "Generated from the code. Exit codes: 0 success, 2 usage or configuration error, 1 any "
        "other error. Errors are one sentence on standard error; see "
        "[Twenty typical mistakes](../mistakes.md). `vora-serve --install-completion` installs "
        "completion for bash, zsh, fish or PowerShell.",
    ]

    def describe(command: Any, name: str, level: int) -> None:
        lines.extend(["", f"{'#' * level} `{name}`", ""])
        text = inspect.cleandoc(
            command.help or (command.callback and command.callback.__doc__) or ""
        )
        lines.append(text.replace("\f", ""))
        context = click.Context(command)
        rows = []
        for parameter in command.params:
            hint = parameter.get_help_record(context)
            if hint is None:
                shown = parameter.human_readable_name
                what = getattr(parameter, "help", None) or ""
                rows.append((f"`{shown}`", what))
            elif "--install-completion" not in hint[0] and "--show-completion" not in hint[0]:
                rows.append((f"`{hint[0]}`", hint[1]))
        if rows:
            lines.extend(["", "| Option | Meaning |", "| --- | --- |"])
            lines.extend(f"| {a.replace('|', chr(92) + '|')} | {escape(b)} |" for a, b in rows)
        for child_name, child in getattr(command, "commands", {}).items():
            if child.hidden:
                continue  # an old name
            describe(child, f"{name} {child_name}", min(level + 1, 4))

    main = get_command(app)
    for name, command in main.commands.items():  # type: ignore[attr-defined]
        describe(command, f"vora-serve {name}", 2)
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Fit for a table's cell."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


# ---------------------------------------------------------------------- settings


def docstrings(model: type) -> dict[str, str]:
    """Field to the string below it in the source."""
    tree = ast.parse(dedent(inspect.getsource(model)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    found = {}
    for before, after in pairwise(body):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[before.target.id] = str(after.value.value)
    return found


_TYPES = {"PositiveInt": "int", "Seconds": "float", "Cidr": "CIDR", "None": "none"}


def annotation(model: type, name: str) -> str:
    """A field's type as the source has it, in short."""
    tree = ast.parse(dedent(inspect.getsource(model)))
    for node in tree.body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
            text = ast.unparse(node.annotation)
            text = re.sub(r"Annotated\[([^,\]]+),.*\]( \| None)?$", r"\1\2", text)
            for name, plain in _TYPES.items():
                text = text.replace(name, plain)
            return text.replace(" | ", " or ")
    return ""


def settings() -> str:
    """The whole tree of settings."""
    from pydantic import BaseModel

    from vora_serve.gateway.settings import Settings

    lines = [
        "# Settings",
        "",
        "Generated from the code. Later sources override earlier ones: defaults, the YAML file "
        "(`--config`), `VORA_SERVE_<SECTION>__<KEY>` variables, command-line options. Unknown keys "
        "are refused. Names that end in `_s` are in seconds.",
    ]

    def section(name: str, model: type[BaseModel]) -> None:
        lines.extend(["", f"## `{name}`", "", inspect.getdoc(model) or "", ""])
        lines.extend(["| Key | Type | Default | Meaning |", "| --- | --- | --- | --- |"])
        notes = docstrings(model)
        nested = []
        for key, field in model.model_fields.items():
            kind = field.annotation
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                nested.append((f"{name}.{key}", kind))
                continue
            default = (
                "required"
                if field.is_required()
                else json.dumps(field.get_default(call_default_factory=True), default=str)
            )
            shown = escape(annotation(model, key))
            lines.append(f"| `{key}` | `{shown}` | `{default}` | {escape(notes.get(key, ''))} |")
        for path, kind in nested:
            section(path, kind)

    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            section(name, kind)
    from vora_serve.gateway.settings import UpstreamSettings

    section("upstreams[]", UpstreamSettings)
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------- HTTP


def http() -> str:
    """Paths, fields and errors, from the document that /openapi.json serves."""
    from vora_serve.gateway import create_app, load_settings

    app = create_app(load_settings(flags={"upstreams": ["http://127.0.0.1:9"]}))
    document = app.openapi()
    lines = [
        "# HTTP API",
        "",
        "Generated from the code, like `/openapi.json` of a running gateway, which `/docs` shows. "
        "Send a key as `Authorization: Bearer KEY`. The tables list every field that the gateway "
        "accepts.",
    ]
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines.extend(["", f"## `{method.upper()} {path}`", "", operation.get("summary", "")])
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            if schema:
                lines.extend(
                    ["", "| Field | Type | Required | Meaning |", "| --- | --- | --- | --- |"]
                )
                required = set(schema.get("required", []))
                for name, field in schema.get("properties", {}).items():
                    lines.append(
                        f"| `{name}` | {escape(type_of(field))} | {must(name in required)} "
                        f"| {escape(field.get('description', ''))} |"
                    )
            answers = ", ".join(
                f"{code} {str(answer.get('description', '')).rstrip('.')}"
                for code, answer in operation["responses"].items()
            )
            lines.extend(["", f"Answers: {answers}."])
    lines.extend(["", "## Parts of requests", "", "What the types in the tables above hold."])
    told = set()
    for name, schema in schemas.items():
        short = name.rpartition("_")[2]
        rows = [
            (field, part.get("description", ""))
            for field, part in schema.get("properties", {}).items()
        ]
        if rows and short not in told:
            told.add(short)
            lines.extend(["", f"### `{short}`", "", "| Field | Meaning |", "| --- | --- |"])
            lines.extend(f"| `{field}` | {escape(words)} |" for field, words in rows)
    lines.extend(["", "## Errors", "", "Every error has this shape:", "", "```json"])
    lines.append(json.dumps({"error": dict.fromkeys(schemas["ErrorObject"]["properties"], "…")}))
    lines.append("```")
    return "\n".join(lines) + "\n"


def must(needed: bool) -> str:
    """A table's cell."""
    return "yes" if needed else ""


def type_of(field: dict[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[-1].split("_", 1)[-1]
    if "anyOf" in field:
        parts = [type_of(part) for part in field["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if field.get("type") == "array":
        return f"list of {type_of(field.get('items', {}))}"
    return str(field.get("type") or field.get("const") or "any")


# ---------------------------------------------------------------------- measurements


def measurements() -> str:
    """An index of what has been measured."""
    lines = [
        "# Measurements",
        "",
        "Each page states the command, versions, machine and load. Ratios compare runs of the same "
        "session. Results on other machines will differ.",
        "",
    ]
    for path in sorted((ROOT / "docs" / "measurements").rglob("*.md")):
        title = path.read_text(encoding="utf-8").lstrip("# ").splitlines()[0]
        lines.append(f"- [{title}]({path.relative_to(ROOT / 'docs').as_posix()})")
    lines.append(
        "- Training and accuracy of the demo model: `vora_serve/demo/checkpoint/report.md`; of its "
        "vision adapters: `vora_serve/demo/specialists/README.md`"
    )
    return "\n".join(lines) + "\n"
