"""Roll-back: a fit whose loss turns non-finite or jumps returns to its last good weights.

The authors fall back when the PSNR to the corrupted image drops by 5 dB between two looks. Here a snapshot of weights,
Adam state and running averages is taken every `INTERVAL` iterations of good standing, and the loss is compared with its
running mean. The perturbation of z goes on counting, so the next attempt sees other noise; when one snapshot fails again
and again the step size is halved. In the end a finite loss is taken for the fit's new level, a non-finite one for an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dipengine.errors import FitError

INTERVAL = 20  # iterations between snapshots
WARM_UP = 100  # the first iterations jump by nature
SMOOTHING = 0.1
HALVE_AFTER = 3  # failures of one snapshot before the step size is halved
GIVE_UP_AFTER = 20


class Rollback:
    """Guards one fit: an object with snapshot(), restore(snapshot) and `optimizer.learning_rate`."""

    def __init__(self, fit, threshold_db: float) -> None:
        self._fit = fit
        self._ratio = 10 ** (threshold_db / 10)
        self._mean = math.nan
        self._snapshot = None
        self._snapshot_mean = math.nan
        self._failures = 0
        self.count = 0

    def check(self, iteration: int, loss: float) -> bool:
        """Judge the loss of `iteration` (1 is the first), before its update; True when the fit was rolled back.

        Raises FitError when the loss is non-finite and no roll-back mends it.
        """
        finite = math.isfinite(loss)
        if self._snapshot is None and not finite:
            raise FitError(f"The first loss of the fit is {loss:g}; check the input's values.")
        if finite and (self._snapshot is None or math.isnan(self._mean)):
            self._take(loss)
        jumped = finite and iteration > WARM_UP and loss > self._ratio * self._mean
        if jumped and self._failures >= GIVE_UP_AFTER:
            self._take(loss)  # this is no accident but the fit's new level
            jumped = False
        if finite and not jumped:
            self._mean = (1 - SMOOTHING) * self._mean + SMOOTHING * loss
            if iteration % INTERVAL == 0:
                self._take(self._mean)
            return False
        self._return(loss)
        return True

    @property
    def snapshot(self):
        """What `restore` of the fit would return to; None before the first iteration."""
        return self._snapshot

    def state(self) -> dict[str, float | int | None]:
        """All but the snapshot (JSON-able)."""
        return {
            "mean": None if math.isnan(self._mean) else self._mean,
            "snapshot_mean": None if math.isnan(self._snapshot_mean) else self._snapshot_mean,
            "failures": self._failures,
            "count": self.count,
        }

    def load_state(self, state: Mapping[str, float | int | None], snapshot) -> None:
        """Go on from a saved state and its snapshot (None where there was none)."""
        means = [math.nan if state[name] is None else float(state[name]) for name in ("mean", "snapshot_mean")]
        self._failures, self.count = int(state["failures"]), int(state["count"])
        (self._mean, self._snapshot_mean), self._snapshot = means, snapshot

    def forget_level(self) -> None:
        """The loss is about to be another one: the next finite one is its level, and its weights those to return to."""
        self._mean = self._snapshot_mean = math.nan

    def _take(self, mean: float) -> None:
        self._snapshot = self._fit.snapshot()
        self._snapshot_mean = self._mean = mean
        self._failures = 0

    def _return(self, loss: float) -> None:
        self.count += 1
        self._failures += 1
        if self._failures > GIVE_UP_AFTER:
            raise FitError(
                f"The fit diverges (loss {loss:g}) and {GIVE_UP_AFTER} roll-backs did not help; check the input's "
                f"values, or try --precision fp32."
            )
        self._fit.restore(self._snapshot)
        self._mean = self._snapshot_mean
        if self._failures % HALVE_AFTER == 0:
            self._fit.optimizer.learning_rate *= 0.5
