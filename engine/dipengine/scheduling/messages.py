"""What the driver and its workers say to each other: picklable, over one pipe a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dipengine.fitting.warm_start import WarmStart
from dipengine.images import Image
from dipengine.scheduling.facts import FileFacts
from dipengine.scheduling.jobs import Request

# ---- to a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Read a job's image and plan its fit; answered by Planned, then runs when it is told to Go."""

    job: int
    attempt: int
    input: str
    request: Request
    output: str | None  # name of the output in the staging folder; None: the result itself comes back
    staging: str | None  # folder of this attempt
    checkpoint: str | None  # to be written now and then, by this attempt alone
    resume: str | None  # checkpoint of an earlier attempt
    image: Image | None = None  # instead of `input`
    sides: dict[str, Any] = field(default_factory=dict)  # arrays of the task's options, where they are no files
    truth: Image | None = None
    init: WarmStart | None = None  # weights to begin with, where they are in no file of the request
    previous: tuple[str, str] | None = None  # the frame before: its generator's file, and its name
    keep_weights: str | None = None  # name in the staging folder, for the frame behind
    stage: str = "image"  # or "tile", "blend": of an image in tiles
    tiles: str | None = None  # folder of its plan
    tile: int = -1
    spent: float = 0.0  # seconds of fitting, of the image's other tiles


@dataclass(frozen=True)
class Go:
    """The memory that was planned is granted."""

    job: int


@dataclass(frozen=True)
class Drop:
    """Nobody wants this job any more; nothing is answered."""

    job: int


@dataclass(frozen=True)
class Threads:
    """CPU threads of each fit from the next iteration on."""

    count: int


@dataclass(frozen=True)
class Stop:
    """Write checkpoints and leave."""


# ---- from a worker --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """First word of a worker. environment: what the bits of its fits depend on."""

    environment: dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """bytes: that the fit will hold; iterations: at most."""

    job: int
    attempt: int
    bytes: int
    iterations: int


@dataclass(frozen=True)
class Tiled:
    """The image is restored in tiles: the plan of them is made. pending: those without a result, of `total` fits."""

    job: int
    attempt: int
    pending: tuple[int, ...]
    total: int
    tiling: str = ""  # number, sizes and overlap of all tiles, for the ledger
    seconds: float = 0.0  # of fitting, of the tiles that are done


@dataclass(frozen=True)
class Progressed:
    job: int
    attempt: int
    iteration: int


@dataclass(frozen=True)
class Noted:
    """Something to be said of a job in the ledger."""

    job: int
    note: str


@dataclass(frozen=True)
class Alive:
    """Said every now and then, by a thread of its own, whatever the worker is at."""


@dataclass(frozen=True)
class Done:
    """staged: files of the staging folder, to be renamed in this order; result: for the ledger; value: what was asked back."""

    job: int
    attempt: int
    staged: tuple[str, ...]
    files: tuple[FileFacts, ...]
    result: dict[str, Any]
    value: Any = None


@dataclass(frozen=True)
class Failed:
    """kind: "final" (the same again would come to the same), "time" (the checkpoint stays), "memory", "disk" (nobody can write),
    or "accident"."""

    job: int
    attempt: int
    error: str
    kind: str
    cause: BaseException | None = None


@dataclass(frozen=True)
class Died:
    """Said by the pool for a worker whose process ended; memory: the system's own hand, for want of memory."""

    reason: str
    memory: bool = False
