"""How a fit is run: everything that the caller may choose, whatever the task."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from dipengine.errors import InputError

PRECISIONS = ("auto", "fp32", "bf16")
STOPS = ("auto", "fixed")
_MOST_LEVELS = 12
_MOST_CHANNELS = 1 << 24


@dataclass(frozen=True)
class Settings:
    """Choices common to all tasks; None leaves a choice to the preset, the recipe or the machine."""

    preset: str = "balanced"
    iterations: int | None = None  # a fixed length, or the ceiling under stop="auto"
    stop: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    kernels: str | None = None
    threads: int | None = None
    upsample: tuple[str, ...] | None = None
    channels: tuple[int, ...] | None = None
    skips: tuple[int, ...] | None = None
    levels: int | None = None
    value_range: tuple[float, float] | None = None  # data values that map to 0 and 1

    def __post_init__(self) -> None:
        for name in ("iterations", "threads", "levels", "seed"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise InputError(f"{name} is {value!r}; give a whole number.")
            if value is not None:
                object.__setattr__(self, name, int(value))  # NumPy's, which records cannot hold
        if self.iterations is not None and self.iterations < 1:
            raise InputError(f"iterations is {self.iterations}; ask for at least 1.")
        if self.levels is not None and not 1 <= self.levels <= _MOST_LEVELS:
            raise InputError(f"levels is {self.levels}; a generator has 1 to {_MOST_LEVELS}.")
        for name, least in (("channels", 1), ("skips", 0)):
            for value in getattr(self, name) or ():
                if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= _MOST_CHANNELS:
                    raise InputError(f"{name} holds {value!r}; each is a whole number from {least} to {_MOST_CHANNELS}.")
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        if self.stop is not None and self.stop not in STOPS:
            raise InputError(f"stop is {self.stop!r}; it takes {' or '.join(STOPS)}.")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed is {self.seed}; it is a whole number from 0 to 2^64 - 1.")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; it takes {', '.join(PRECISIONS)}.")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is {self.threads}; ask for at least 1.")
