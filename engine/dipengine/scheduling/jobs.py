"""A job: one image and what is to be done with it. Small, JSON-able, the same for a folder, a manifest and Python."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from dipengine.errors import InputError
from dipengine.fitting.settings import Settings
from dipengine.images.limits import MAX_PIXELS
from dipengine.tasks import task_named
from dipengine.tasks.base import Task
from dipengine.tasks.option_files import file_options
from dipengine.tasks.presets import preset_named

# Settings of one job; where it runs is the engine's business.
SETTINGS = tuple(field.name for field in fields(Settings) if field.name not in ("device", "threads"))
_TUPLES = ("upsample", "channels", "skips", "value_range")
# Where a fit runs and with how many threads is not what is asked for: the ledger keeps the device of each job apart.
_NOT_ASKED = ("threads", "device")


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that nobody has given: None, and flags that are not set."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


@dataclass(frozen=True)
class Request:
    """What is asked of an image. Jobs of one folder share one request.

    options: the task's own by keyword, files as paths; settings: those of the fit; truth: an image to measure against.
    """

    task: str = "denoise"
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = Settings()
    truth: str | None = None
    init_from: str | None = None  # generator or checkpoint whose weights every fit begins with
    tile: str = "auto"  # as --tile
    keep_generator: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        task = task_named(self.task)
        known = {option.keyword for option in task.options}
        unknown = sorted(set(self.options) - known)
        if unknown:
            raise InputError(f"{task.name} has no option {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}.")

    def check_complete(self) -> None:
        """Raises InputError where an option is missing that the task needs, or one makes no sense whatever the image."""
        for option in self.described.options:
            if option.required and self.options.get(option.keyword) is None:
                raise InputError(f"{self.task} needs {option.name}: {option.help}.")
        self.check_options()

    def check_options(self) -> None:
        """Raises InputError for options that make no sense whatever the image."""
        from dipengine.tiling import TileRequest

        preset_named(self.settings.preset)
        TileRequest.parse(self.tile)
        if self.max_pixels < 1:
            raise InputError(f"max-pixels is {self.max_pixels}; give at least 1.")
        for option in self.described.options:
            value = self.options.get(option.keyword)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{option.name} is {value}; give a finite number.")

    @property
    def described(self) -> Task:
        return task_named(self.task)

    def side_files(self) -> list[str]:
        """The files besides the image that the result depends on."""
        named = (self.options.get(name) for name in file_options(self.described))
        return [path for path in (*named, self.truth, self.init_from) if path is not None]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` makes it again."""
        return {**asdict(self), "options": dict(sorted(given(self.options).items()))}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Request":
        settings = dict(record["settings"])
        for name in _TUPLES:
            if settings.get(name) is not None:
                settings[name] = tuple(settings[name])
        return Request(**{**record, "settings": Settings(**settings)})

    @cached_property
    def json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the result depends on besides the files and the machine."""
        record = self.to_dict()
        del record["max_pixels"]
        record["settings"] = {name: value for name, value in record["settings"].items() if name not in _NOT_ASKED}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Job:
    """One image to be restored.

    `input`: absolute path; `output`: path below the batch's folder, '/' between its parts."""

    input: str
    output: str
    request: Request
    priority: int = 0  # higher ones first; among equals the order of the source
    after: str | None = None  # output of the job whose weights this one begins with: the frame before
