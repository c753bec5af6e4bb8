"""The one progress interface: a fit reports to a `Progress`, a bar shows it, a host may listen or stop the fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True)
class Report:
    """Where a fit stands after an iteration."""

    iteration: int  # 1 after the first
    ceiling: int
    loss: float
    variance: float  # of the outputs (ES-EMV)
    psnr: float | None  # of the delivered image so far, in dB, when the truth was given


ProgressCallback = Callable[[Report], bool | None]  # a true return value stops the fit


def seconds_between() -> float:
    """Least time from one state of a bar on standard error to the next: a terminal is watched, a log is told now and then."""
    return 0.2 if sys.stderr.isatty() else 10.0


class ProgressBar:
    """A tqdm bar on standard error: iteration, loss, PSNR when the truth is known, time left.

    Where standard error is closed, full or has lost its reader the bar ends and the fit goes on.
    """

    def __init__(self, ceiling: int, label: str) -> None:
        self._bar = None
        self._guarded(self._open, ceiling, label)

    def __call__(self, report: Report) -> None:
        self._guarded(self._show, report)

    def _open(self, ceiling: int, label: str) -> None:
        from tqdm import tqdm

        if sys.stderr is not None:
            self._bar = tqdm(total=ceiling, desc=label, unit="it", dynamic_ncols=True, mininterval=seconds_between())

    def _show(self, report: Report) -> None:
        if self._bar is None:
            return
        if self._bar.n == 0 and report.iteration > 1:  # taken up: what was run before tells nothing of the pace
            self._bar.initial = self._bar.n = report.iteration - 1
        self._bar.update(report.iteration - self._bar.n)
        values = {"loss": f"{report.loss:.5f}"}
        if report.psnr is not None:
            values["PSNR"] = f"{report.psnr:.2f} dB"
        self._bar.set_postfix(values, refresh=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _guarded(self, action: Callable[..., None], *arguments: object) -> None:
        try:
            action(*arguments)
        except (OSError, ValueError):  # ValueError: the stream was closed
            if self._bar is not None:
                self._bar.disable = True
            self._bar = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._guarded(self._close)
