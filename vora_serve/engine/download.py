"""A checkpoint from a model hub, fetched before the engine starts.

The engine would fetch it too, but silently, and a long download would count as a start that hangs.
Run as a process of its own, with progress bars on standard error: ``python -m
vora_serve.engine.download MODEL [REVISION]``. Prints the snapshot's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vora_core.errors import EngineError
from vora_serve.engine.checkpoint import check_checkpoint

#: Weights in these forms are not read where there are safetensors.
_OTHER_FORMS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.msgpack", "*.h5")
_SENTENCE_FAILED = 3


async def fetch(model: str, args: Sequence[str]) -> None:
    """Bring a hub's checkpoint into the local cache, where the engine finds it.

    Args:
        model: hub id.
        args: the engine's flags; ``--revision`` counts, and with ``--download-dir`` nothing is
            done, since the engine then looks elsewhere.

    Raises:
        EngineError: the download failed.
        CheckpointError: it is not a VoRA checkpoint.
    """
    if _flag(args, "--download-dir") is not None:
        return
    command = [sys.executable, "-m", __name__, model]
    revision = _flag(args, "--revision")
    process = await asyncio.create_subprocess_exec(
        *command, *([revision] if revision else []), stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    said = output.decode().strip()
    if process.returncode == _SENTENCE_FAILED:
        raise EngineError(said)
    if process.returncode:
        raise EngineError(f"{model} could not be downloaded; see its output above.")
    check_checkpoint(said)


def _flag(args: Sequence[str], name: str) -> str | None:
    """The value of ``--name VALUE`` or ``--name=VALUE``."""
    for index, arg in enumerate(args):
        if arg == name and index + 1 < len(args):
            return args[index + 1]
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}=")
    return None


def download(model: str, revision: str | None) -> Path:
    """Fetch what is missing of a snapshot; its folder."""
    from huggingface_hub import HfApi, constants, snapshot_download

    # HTTPError is that of whichever httpx the hub's client uses.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    ignored = list(_OTHER_FORMS)
    try:
        if not constants.HF_HUB_OFFLINE:
            siblings = HfApi().model_info(model, revision=revision).siblings or []
            if not any(file.rfilename.endswith(".safetensors") for file in siblings):
                ignored = []
    except HfHubHTTPError:
        raise
    except HTTPError:  # out of reach: the snapshot of last time will do
        pass
    return Path(snapshot_download(model, revision=revision, ignore_patterns=ignored))


def main() -> int:
    """Command line."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
    )

    model, revision = sys.argv[1], (sys.argv[2] if len(sys.argv) > 2 else None)
    where = f"{model} at revision {revision}" if revision else model
    try:
        said, code = str(download(model, revision)), 0
    except HfHubHTTPError as error:
        said, code = f"The hub refused {where}: {_reason(error)}", _SENTENCE_FAILED
    except LocalEntryNotFoundError:
        said = f"{where} is not in the local cache, and the hub cannot be reached."
        code = _SENTENCE_FAILED
    except (HTTPError, OSError) as error:
        said, code = f"{where} could not be fetched: {error}", _SENTENCE_FAILED
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(said + "\n")
    return code


def _reason(error: Any) -> str:
    status = error.response.status_code
    if status in (401, 403, 404):  # the hub hides what is private behind a 404
        return f"HTTP {status}. If it is private or gated, set HF_TOKEN or `hf auth login`."
    return f"HTTP {status}."


if __name__ == "__main__":
    sys.exit(main())
