"""``vora-serve keys``: API keys made, listed, revoked and expired."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from vora_core.errors import ConfigError
from vora_serve.command import App

app = App(help="Create, list, revoke and expire API keys.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Owner of the key.")]
File = Annotated[
    Path | None, typer.Option("--file", help="The key file; auth.keys_file where absent.")
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _key_file(file: Path | None, config: Path | None) -> Path:
    from vora_serve.gateway.settings import load_settings

    path = file if file is not None else load_settings(config).auth.keys_file
    if path is None:
        raise ConfigError("Name the key file with --file, or a configuration with auth.keys_file.")
    return path


def _record(config: Path | None, act: str, **fields: str) -> None:
    from vora_serve.gateway.audit import AuditLog
    from vora_serve.gateway.settings import load_settings

    AuditLog(load_settings(config).logging.audit_file).record(act, **fields)


@app.command("new")
def new(
    name: Name,
    file: Annotated[Path | None, typer.Option("--file", help="Append the entry here.")] = None,
    group: Annotated[str | None, typer.Option(help="The tenant that the key belongs to.")] = None,
    config: Config = None,
) -> None:
    """Make a key: it is shown once; its entry goes into the key file."""
    from vora_serve.gateway.admission import add_key, hash_key, new_key

    key = new_key()
    entry = {"name": name, "sha256": hash_key(key)}
    entry |= {"group": group} if group is not None else {}
    if file is None:
        _say(f"key (shown this once): {key}\nentry for the key file:")
        lines = [f"{field}: {value}" for field, value in entry.items()]
        _say("  - " + "\n    ".join(lines))
        return
    add_key(file, entry)
    _record(config, "key.created", key=name, file=str(file))
    _say(f"key (shown this once): {key}\nIts entry is in {file}.")


@app.command("list")
def list_(file: File = None, config: Config = None) -> None:
    """List the keys of a key file, without their hashes."""
    from vora_serve.gateway.admission import read_keys, state_of

    rows = [("NAME", "GROUP", "STATE", "EXPIRES", "SCOPES")]
    for key in read_keys(_key_file(file, config)):
        expires = key.expires.isoformat() if key.expires is not None else "never"
        rows.append((key.name, key.group or "-", state_of(key), expires, ",".join(key.scopes)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = zip(row, widths, strict=True)
        _say("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


@app.command("revoke")
def revoke(name: Name, file: File = None, config: Config = None) -> None:
    """Refuse a key from now on; its entry stays, so that its name is not used again."""
    from vora_serve.gateway.admission import set_field

    path = _key_file(file, config)
    set_field(path, name, "revoked", "true")
    _record(config, "key.revoked", key=name, file=str(path))
    _say(f"The key '{name}' is revoked; gateways refuse it once they have read {path} again.")


@app.command("expire")
def expire(
    name: Name,
    at: Annotated[str | None, typer.Option(help="When, such as 2027-01-31T12:00Z.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="In so many days.")] = None,
    file: File = None,
    config: Config = None,
) -> None:
    """Let a key expire: now, at a time, or in some days."""
    from vora_serve.gateway.admission import set_field

    if at is not None and days is not None:
        raise ConfigError("Give --at or --days, not both.")
    try:
        when = datetime.fromisoformat(at) if at is not None else datetime.now(UTC)
        when += timedelta(days=days or 0)
    except (ValueError, OverflowError):
        raise ConfigError(
            "The time is malformed or too far away; write for example 2027-01-31T12:00Z."
        ) from None
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    path = _key_file(file, config)
    text = when.isoformat(timespec="seconds")
    set_field(path, name, "expires", f'"{text}"')
    _record(config, "key.expires", key=name, file=str(path), at=text)
    _say(f"The key '{name}' expires at {text}.")
