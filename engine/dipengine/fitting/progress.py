"""The one progress interface: a fit reports to a `Progress`, a bar shows it, a host may listen or stop the fit."""

from __future__ import annotations

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


class ProgressBar:
    """A tqdm bar on standard error: iteration, loss, PSNR when the truth is known, time left."""

    def __init__(self, ceiling: int, label: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=ceiling, desc=label, unit="it", dynamic_ncols=True, mininterval=0.2)

    def __call__(self, report: Report) -> None:
        self._bar.update(report.iteration - self._bar.n)
        values = {"loss": f"{report.loss:.5f}"}
        if report.psnr is not None:
            values["PSNR"] = f"{report.psnr:.2f} dB"
        self._bar.set_postfix(values, refresh=False)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
