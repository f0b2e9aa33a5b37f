"""Lets builds take packages from where this machine takes them: pip's configuration, as secrets.

A build sees neither this machine's files nor its configuration. Where pip is told here to use
other indexes, folders or certificates, builds are told the same; folders are served over loopback,
which builds on the host's network reach.
"""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

_KEYS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy")
_CA = "/run/secrets/ca"


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves ``/NUMBER/…`` from the folder of that number."""

    def __init__(self, *arguments: object, folders: list[Path], **options: object) -> None:
        self._folders = folders
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        number, _, rest = urlsplit(path).path.lstrip("/").partition("/")
        folder = self._folders[int(number)] if number.isdigit() else Path("/nonexistent")
        self.directory = str(folder)
        return super().translate_path("/" + rest)

    def log_message(self, *_: object) -> None:
        """Silence."""


class Packages:
    """While open, ``arguments`` lets ``docker build`` install what pip can install here.

    Args:
        folder: For the secrets' files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shared: list[Path] = []
        handler = functools.partial(_Files, folders=self._shared)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Packages:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def arguments(self) -> list[str]:
        """For ``docker build``."""
        configuration = self._folder / "pip.conf"
        lines = ["[global]", "timeout = 180"]
        settings = _settings()
        bundle = settings.pop("cert", None) or os.environ.get("SSL_CERT_FILE")
        result = ["--network", "host", "--secret", f"id=pip,src={configuration}"]
        if bundle and Path(bundle).is_file():
            lines.append(f"cert = {_CA}")
            result += ["--secret", f"id=ca,src={bundle}"]
        for key, value in settings.items():
            if key in _KEYS:
                lines.append(f"{key} = {' '.join(map(self._reached, value.split()))}")
        configuration.write_text("\n".join(lines) + "\n")
        return result

    def _reached(self, place: str) -> str:
        """An index or a folder, as builds reach it."""
        path = Path(place.removeprefix("file://"))
        if not path.is_absolute():
            return place
        # Pages of an index name files beside their folder.
        shared = path.parent
        if shared not in self._shared:
            self._shared.append(shared)
        number = self._shared.index(shared)
        return f"http://127.0.0.1:{self._server.server_port}/{number}/{path.name}/"


def _settings() -> dict[str, str]:
    """pip's configuration here, by name; the environment's wins."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        name = key.split(".")[-1]
        if name in ("find-links", "extra-index-url") and name in found:
            found[name] += " " + value.strip("'").replace("\\n", " ")
        else:
            found[name] = value.strip("'").replace("\\n", " ")
    return found
