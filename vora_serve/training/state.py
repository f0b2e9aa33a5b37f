"""What a run needs to resume: trained weights, optimizers, step, random state, place in the data.

A state is written beside the old one and takes its place by renaming: it is whole or absent, also
when the disk is full or the process is killed while it is written. The state before it is kept, and
is resumed from where the newest turns out to be damaged.
"""

import logging
import os
import pickle
import random
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from model_plugin import CheckpointError
from vora_serve.training.identity import Identity, differences
from vora_serve.training.parallel import Strategy
from vora_serve.training.recipe import Optimisation
from vora_serve.training.stream import State

log = logging.getLogger(__name__)
STATE_FOLDER = "state"
#: Of what a state holds; another is refused.
_VERSION = 2
_FILE, _PREVIOUS, _SHARDS = "state.pt", "previous.pt", "shards"


class RunState:
    """A run's states on disk: the newest, and the one before.

    Args:
        folder: where they are.
        strategy: the run's model and optimizers.
        settings: the recipe's.
        accelerator: of the run.
        identity: what the run's result depends on; a state of another is refused.
    """

    def __init__(
        self,
        folder: Path,
        strategy: Strategy,
        settings: Optimisation,
        accelerator: Accelerator,
        identity: Identity,
    ) -> None:
        self.folder, self.strategy = folder, strategy
        self.settings, self.accelerator = settings, accelerator
        self.identity = identity
        #: Where the data loader is: states of all shards of the data.
        self.shards: dict[int, State] = {}
        #: Steps done in the newest good state; None while there is none.
        self.step: int | None = None
        #: The run's last step and place in the data, once it has ended.
        self.final: tuple[int, dict[int, State]] | None = None

    def keep_final(self) -> None:
        """Save the state after the last step, unless it is saved already."""
        if self.final is not None and self.step != self.final[0]:
            self.save(*self.final)

    def save(self, step: int, shards: dict[int, State]) -> None:
        """Write the state after ``step`` steps; called by every process.

        Args:
            step: steps done.
            shards: states of this process's shards of the data.

        Raises:
            CheckpointError: it could not be written; the one before is still there.
        """
        if self.accelerator.num_processes > 1:
            shards = {n: s for part in gather_object([shards]) for n, s in part.items()}
        data: dict[str, Any] = {
            "step": step,
            "identity": self.identity,
            "sharding": self.settings.sharding,
            "world_size": self.accelerator.num_processes,
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "data": shards,
            "version": _VERSION,
        }
        if self.accelerator.is_main_process:
            # At most two states at a time: a disk needs no room for a third.
            (self.folder / _PREVIOUS).unlink(missing_ok=True)
            self._drop_shards()
        # Every process writes its part; the small file that names the folder makes it count.
        name = f"{_SHARDS}-{step}"
        with _DiskErrors():
            self.folder.mkdir(parents=True, exist_ok=True)
            data |= self.strategy.save(self.folder / name)
        sums = self._checksums(self.folder / name)
        if self.accelerator.is_main_process:
            self._replace(data | {"shards": name, "checksums": sums})
        self.accelerator.wait_for_everyone()
        self.step = step

    def load(self) -> int:
        """Restore the newest good state, if there is one; returns the number of steps done.

        Raises:
            CheckpointError: it is of another recipe or model, or every state is damaged.
        """
        damaged = []
        for name in (_FILE, _PREVIOUS):
            file = self.folder / name
            if not file.exists():
                continue
            reason = self._damage(file)
            if self._any(reason is not None):
                damaged.append(f"{file} {reason or 'is damaged on another process'}")
                continue
            if damaged:
                log.warning("%s; resuming from the state before it.", damaged[-1])
            return self._restore(file)
        if damaged:
            raise CheckpointError(
                f"No good training state is left: {'; '.join(damaged)}. Remove {self.folder} to "
                "start over."
            )
        return 0

    def last(self) -> str:
        """A sentence that names the last good state, for a message about the run's end."""
        if self.step is None:
            return "No training state was saved; set optimisation.save_every to keep some."
        return (
            f"The last good state is of step {self.step}, in {self.folder}; the same command "
            "resumes from it."
        )

    def remove(self) -> None:
        """A finished run needs no state."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _restore(self, file: Path) -> int:
        # Our own file, with Python's and numpy's random states in it.
        data = torch.load(file, map_location="cpu", weights_only=False)
        refuse_another(file, data, self.identity)
        refuse_sharing(file, data, self.settings.sharding, self.accelerator.num_processes)
        try:
            self.strategy.load(self.folder / data.get("shards", ""), data)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise CheckpointError(f"{file} does not fit this model: {reason}") from error
        python, numpy, pytorch = data["random"]
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
        self.shards = data["data"]
        self.step = int(data["step"])
        return self.step

    def _replace(self, data: dict[str, Any]) -> None:
        newest, temporary = self.folder / _FILE, self.folder / "state.tmp"
        try:
            with _DiskErrors(), temporary.open("wb") as file:
                torch.save(data, file)
                file.flush()
                os.fsync(file.fileno())
        except CheckpointError:
            temporary.unlink(missing_ok=True)
            shutil.rmtree(self.folder / str(data["shards"]), ignore_errors=True)
            raise
        if newest.exists():
            newest.replace(self.folder / _PREVIOUS)
        temporary.replace(newest)

    def _drop_shards(self) -> None:
        """Remove shards that the newest state does not name."""
        kept = header(self.folder).get("shards") if (self.folder / _FILE).exists() else None
        for old in self.folder.glob(f"{_SHARDS}-*"):
            if old.name != kept:
                shutil.rmtree(old, ignore_errors=True)

    def _checksums(self, folder: Path) -> dict[str, int]:
        """CRC-32 of every file of sharded weights, each computed by one process."""
        self.accelerator.wait_for_everyone()
        sums = _sums_of(self._mine(folder))
        if self.accelerator.num_processes > 1:
            sums = {n: s for part in gather_object([sums]) for n, s in part.items()}
        return sums

    def _damage(self, file: Path) -> str | None:
        """What is wrong with a state's bytes; every process looks at its part of them."""
        try:
            if self.accelerator.is_main_process:
                with zipfile.ZipFile(file) as archive:
                    if archive.testzip() is not None:
                        return "is damaged: a checksum does not match"
            data = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
            folder = self.folder / data["shards"]
            wanted = data["checksums"]
            if any(not (folder / name).is_file() for name in wanted):
                return "is damaged: a file of its shards is missing"
            mine = _sums_of(self._mine(folder))
            if any(mine.get(name, sum_) != sum_ for name, sum_ in wanted.items()):
                return "is damaged: a checksum of its shards does not match"
        except (zipfile.BadZipFile, pickle.UnpicklingError, OSError, EOFError) as error:
            return f"is damaged: {str(error).strip().split(chr(10))[0]}"
        except (RuntimeError, KeyError, ValueError, AttributeError, zlib.error) as error:
            return f"is damaged: {type(error).__name__}"
        return None

    def _mine(self, folder: Path) -> list[Path]:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return files[self.accelerator.process_index :: self.accelerator.num_processes]

    def _any(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        return any(gather_object([flag]))


def header(folder: Path) -> dict[str, Any]:
    """What the newest state in a run's state folder says of itself; empty where there is none."""
    file = folder / _FILE
    try:
        data: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        return {}
    return data


def refuse_another(file: Path, data: dict[str, Any], identity: Identity) -> None:
    """Refuse a state whose run would have another result.

    Only keys that both have are compared where ``identity`` is a part of a run's.

    Raises:
        CheckpointError: it says what differs.
    """
    saved = data.get("identity")
    if saved is None or data.get("version") != _VERSION:
        raise CheckpointError(
            f"{file} was saved by an earlier version; remove its folder to start over."
        )
    found = differences({key: saved.get(key) for key in identity}, identity)
    if found:
        raise CheckpointError(
            f"{file} was saved under another recipe: {'; '.join(found)}. Change that back to "
            "resume, or remove its folder to start over."
        )


def refuse_sharing(file: Path, data: dict[str, Any], sharding: str, processes: int) -> None:
    """Refuse a state that processes shared in another way.

    Raises:
        CheckpointError: it says how.
    """
    if data["sharding"] != sharding:
        raise CheckpointError(
            f"{file} was saved with optimisation.sharding {data['sharding']}, which cannot become "
            f"{sharding}."
        )
    if sharding == "zero1" and data["world_size"] != processes:
        raise CheckpointError(
            f"{file} was saved by {data['world_size']} processes; with optimisation.sharding zero1 "
            f"{processes} cannot resume it."
        )


def check_resume(run: Path, identity: Identity, sharding: str, processes: int) -> None:
    """Refuse, before any weights are read, to resume a state of another run.

    Args:
        run: the run's folder.
        identity: what the recipe alone says.
        sharding: the recipe's.
        processes: of the run.

    Raises:
        CheckpointError: the state is another run's; the difference is named.
    """
    folder = run / STATE_FOLDER
    data = header(folder)
    if data:
        refuse_another(folder / _FILE, data, identity)
        refuse_sharing(folder / _FILE, data, sharding, processes)


def _sums_of(files: list[Path]) -> dict[str, int]:
    sums = {}
    for path in files:
        total = 0
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                total = zlib.crc32(block, total)
        sums[path.name] = total
    return sums


class _DiskErrors:
    """Say in one sentence that a state could not be written."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        # torch's writer wraps the system's error in a RuntimeError of its own.
        if isinstance(error, OSError | RuntimeError):
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"The training state could not be saved: {reason}.") from error
