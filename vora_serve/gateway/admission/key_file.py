"""Changing a key file by command; its comments and its order are left as they are."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from vora_core.errors import ConfigError
from vora_serve.gateway.admission.keys import ApiKey, read_keys


def add_key(path: Path, entry: Mapping[str, Any]) -> None:
    """Append an entry; the file is made where it does not exist.

    Raises:
        ConfigError: the name is taken, a value is wrong, or the file cannot be changed.
    """
    text = yaml.safe_dump([dict(entry)], sort_keys=False)
    if not path.exists():
        _write(path, "keys:\n" + _indented(text, 2))
        return
    with _locked(path):
        old = path.read_text()
        if any(key.name == entry["name"] for key in read_keys(path)):
            raise ConfigError(f"The key file {path} has a key '{entry['name']}' already.")
        entries = _entries(old)
        if entries.flow_style or not entries.value:
            keys = [*(yaml.safe_load(old)["keys"] or []), dict(entry)]
            _write(path, yaml.safe_dump({"keys": keys}, sort_keys=False))
            return
        dash = old.rindex("-", 0, entries.value[0].start_mark.index)
        column = dash - (old.rfind("\n", 0, dash) + 1)
        end = entries.value[-1].end_mark.index
        head = old[:end].rstrip("\n ") + "\n"
        _write(path, head + _indented(text, column) + old[end:].lstrip("\n"))


def set_field(path: Path, name: str, field: str, value: str) -> ApiKey:
    """Set one field of a key's entry to a YAML scalar; the key as it is then.

    Raises:
        ConfigError: there is no such key, or the file cannot be changed.
    """
    with _locked(path):
        read_keys(path)
        old = path.read_text()
        for entry in _entries(old).value:
            fields = {key.value: node for key, node in entry.value}
            if fields["name"].value == name:
                break
        else:
            raise ConfigError(f"The key file {path} has no key '{name}'.")
        if field in fields:
            start, end = fields[field].start_mark.index, fields[field].end_mark.index
            new = old[:start] + value + old[end:]
        else:
            end = fields["name"].end_mark.index
            column = entry.value[0][0].start_mark.column
            between = ", " if entry.flow_style else "\n" + " " * column
            new = f"{old[:end]}{between}{field}: {value}{old[end:]}"
        _write(path, new)
    return next(key for key in read_keys(path) if key.name == name)


def state_of(key: ApiKey) -> str:
    """Whether a key is valid, revoked or expired."""
    if key.revoked:
        return "revoked"
    return "expired" if key.expires is not None and key.expires <= datetime.now(UTC) else "valid"


def _entries(text: str) -> yaml.SequenceNode:
    root = yaml.compose(text, yaml.SafeLoader)
    assert root is not None  # it has been read as a key file
    node = next(node for key, node in root.value if key.value == "keys")
    if not isinstance(node, yaml.SequenceNode):
        raise ConfigError("The key file holds no list of keys.")
    return node


def _indented(text: str, column: int) -> str:
    return "".join(" " * column + line for line in text.splitlines(keepends=True))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two commands at a time change the file one after the other."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be changed: {error.strerror}.") from None


def _write(path: Path, text: str) -> None:
    """Replace the file's text once the new one has been read without fault."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        new = Path(name)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            read_keys(new)
            if path.exists():
                new.chmod(path.stat().st_mode & 0o7777)
            try:
                new.replace(path)
            except OSError:  # mounted as a single file: it can only be written over
                path.write_text(text)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"The key file {path} cannot be changed: {error.strerror}.") from None
