"""The data section of a recipe: where samples come from and how they are mixed and packed."""

import glob
import logging
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model_plugin import ConfigError
from vora_serve.training.recipe import Strict
from vora_serve.world.wide.rows import SHARES, Kind, find_world

log = logging.getLogger(__name__)
_SKIPPED_SHARE = 0.01
Format = Literal["jsonl", "parquet", "webdataset", "world"]
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
}


class Source(Strict):
    """One data set.

    Attributes:
        files: paths or glob patterns; a folder means the data files in it.
        format: ``jsonl`` (a record a line, or one JSON array), ``parquet`` or ``webdataset``; by
            the files' names when absent. ``world`` draws samples of the wide world while training;
            ``files`` is then the folder of its emoji.
        split: of the world: ``train``, ``validation`` or ``test``.
        families: of the world: how often each family is drawn, and ``shapes`` and ``digits``; 1
            where it is not said, ``shapes`` 3.
        image_dir: folder that relative paths of images start from; the file's own when absent.
        weight: how often samples are drawn from here, relative to the other sources.
    """

    files: tuple[str, ...] = Field(min_length=1)
    format: Format | None = None
    split: Literal["train", "validation", "test"] = "train"
    families: dict[Kind, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    image_dir: str | None = None
    weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _families_are_drawn(self) -> Self:
        if self.families and self.format != "world":
            raise ValueError("families are of sources of the format world")
        if not any({**SHARES, **self.families}.values()):
            raise ValueError("families leaves nothing to draw: all of them are 0")
        return self

    def resolve(self) -> tuple[Format, list[Path]]:
        """The format, and the files in order.

        Raises:
            ConfigError: a pattern matches nothing, or the format is unknown.
        """
        if self.format == "world":
            return "world", self._emoji_folder()
        found: list[Path] = []
        for pattern in self.files:
            matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
            inside = [f for m in matches if m.is_dir() for f in sorted(m.rglob("*"))]
            files = [m for m in matches if m.is_file()]
            files += [f for f in inside if f.is_file() and f.suffix in _SUFFIXES]
            if not files:
                raise ConfigError(f"There is no data file {pattern}.")
            found += files
        formats = {self.format or _SUFFIXES.get(file.suffix) for file in found}
        if len(formats) != 1 or None in formats:
            raise ConfigError(
                f"The format of {', '.join(self.files)} is not clear from the names; say which of "
                "jsonl, parquet and webdataset it is."
            )
        if self.image_dir is not None and not Path(self.image_dir).is_dir():
            raise ConfigError(f"There is no folder of images {self.image_dir}.")
        return formats.pop(), found  # type: ignore[return-value]

    def _emoji_folder(self) -> list[Path]:
        folders = [Path(file) for file in self.files]
        if len(folders) != 1:
            raise ConfigError("A source of the format world has one entry in files: its emoji.")
        find_world(folders[0], self.split)
        return folders


class Data(Strict):
    """Sources and what is made of them.

    Attributes:
        sources: mixed by weight.
        shuffle_buffer: raw samples that are held and shuffled at a time, in each shard.
        shards: independent streams that a run draws from, each with its share of every source. They
            are spread over processes and their workers, so what a step sees does not depend on how
            many of those there are. Processes must divide shards, and shards the batch. (``lanes``
            is their earlier name, which is still read.)
        pack: fill sequences of ``max_length`` with whole samples; a batch then counts sequences.
        pack_window: samples that are packed together; more leave less padding.
        too_long: what happens to samples of more than ``max_length`` tokens: ``shorten`` leaves
            out last questions until they fit, ``skip`` counts them as broken.
        max_skipped: broken samples that a run skips in any case; those that are too long do not
            count.
        max_skipped_share: broken samples that it skips beyond them, as a share of those read; 0.01
            unless ``max_skipped`` is given, then none.
    """

    sources: tuple[Source, ...] = Field(min_length=1)
    shuffle_buffer: int = Field(default=1000, gt=0)
    shards: int = Field(default=1, gt=0)
    pack: bool = False
    pack_window: int = Field(default=128, gt=0)
    too_long: Literal["shorten", "skip"] = "shorten"
    max_skipped: int = Field(default=1000, ge=0)
    max_skipped_share: float | None = Field(default=None, ge=0, le=1)

    @property
    def skipped_share(self) -> float:
        """The share in force."""
        if self.max_skipped_share is not None:
            return self.max_skipped_share
        return 0.0 if "max_skipped" in self.model_fields_set else _SKIPPED_SHARE

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "lanes" not in given:
            return given
        log.warning("data.lanes is now called data.shards; the old name goes with the next release")
        kept = {key: value for key, value in given.items() if key != "lanes"}
        return kept | {"shards": given["lanes"]}  # it overrides what a base says

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.pack and self.pack_window > self.shuffle_buffer:
            raise ValueError("pack_window must not exceed shuffle_buffer")
        return self
