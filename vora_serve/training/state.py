"""What a run needs to go on: trained weights, optimizers, step, random state, place in the data.

A state is written beside the old one and takes its place by renaming: it is whole or absent, also
when the disk is full or the process is killed while it is written.
"""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from model_plugin import CheckpointError
from vora_serve.training.data_recipe import Data
from vora_serve.training.parallel import Strategy
from vora_serve.training.recipe import Optimisation
from vora_serve.training.stream import State

STATE_FOLDER = "state"
_FILE, _SHARDS = "state.pt", "shards"


class RunState:
    """A run's state on disk.

    Args:
        folder: where it lies.
        strategy: the run's model and optimizers.
        settings: the recipe's; a state of another recipe is refused.
        accelerator: of the run.
        data: the recipe's section, where a stream is trained on; likewise.
    """

    def __init__(
        self,
        folder: Path,
        strategy: Strategy,
        settings: Optimisation,
        accelerator: Accelerator,
        data: Data | None = None,
    ) -> None:
        self.folder, self.strategy = folder, strategy
        self.settings, self.accelerator = settings, accelerator
        self.data = data.model_dump(mode="json") if data is not None else None
        #: Where the data stood: states of all lanes.
        self.lanes: dict[int, State] = {}

    def save(self, step: int, lanes: dict[int, State]) -> None:
        """Write the state after ``step`` steps; called by every process.

        Args:
            step: steps done.
            lanes: states of this process's lanes.

        Raises:
            CheckpointError: it could not be written; the one before is still there.
        """
        if self.accelerator.num_processes > 1:
            lanes = {n: s for part in gather_object([lanes]) for n, s in part.items()}
        data: dict[str, Any] = {
            "step": step,
            "settings": self.settings.model_dump(mode="json"),
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "lanes": lanes,
            "data": self.data,
        }
        # Every process writes its part; the small file that names the folder makes it count.
        name = f"{_SHARDS}-{step}"
        with _disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            data |= self.strategy.save(self.folder / name)
        if self.accelerator.is_main_process:
            self._replace(data | {"shards": name})
            for old in self.folder.glob(f"{_SHARDS}-*"):
                if old.name != name:
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def load(self) -> int:
        """Restore the last state, if there is one; returns the number of steps done.

        Raises:
            CheckpointError: it is of another recipe or model.
        """
        file = self.folder / _FILE
        if not file.exists():
            return 0
        # Our own file, with Python's and numpy's random states in it.
        data = torch.load(file, map_location="cpu", weights_only=False)
        # Keys that came later have the value that changes nothing.
        same = Optimisation.model_validate(data["settings"]) == self.settings
        if not same or data.get("data") != self.data:
            raise CheckpointError(
                f"{file} was saved under another recipe; remove its folder to begin anew."
            )
        self.strategy.load(self.folder / data.get("shards", ""), data)
        python, numpy, pytorch = data["random"]
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
        self.lanes = data.get("lanes", {})
        return int(data["step"])

    def remove(self) -> None:
        """A finished run needs no state."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _replace(self, data: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "state.tmp"
        try:
            with _disk_errors(), temporary.open("wb") as file:
                torch.save(data, file)
                file.flush()
                os.fsync(file.fileno())
        except CheckpointError:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(self.folder / _FILE)


class _disk_errors:
    """Say in one sentence that a state could not be written."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        # torch's writer wraps the system's error in a RuntimeError of its own.
        if isinstance(error, OSError | RuntimeError):
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"The training state could not be saved: {reason}.") from error
