"""When to stop: the fit has learnt the image and begins to learn the noise where its outputs move least.

ES-EMV (H. Wang et al., "Early Stopping for Deep Image Prior", TMLR 2023): the exponentially weighted variance of the
outputs falls while the image is fitted and rises when noise is; its minimum lies close to the best output. O(1) memory:

    d2 = mean |x - A|^2,   V <- (1-a) V + a (1-a) d2,   A <- (1-a) A + a x,   with A = x, V = 0 at the first frame.

What is delivered is an average over iterations, and an exponential average of decay m looks back 1/(1-m) iterations in
the mean, a tenth of the run while it is warming up: the average that is centred on the minimum is the one taken that
many iterations later.

Known noise needs no such statistic and takes none: by the discrepancy principle (Morozov 1966) the fit is done when the
delivered image's mean squared residual has come down to the noise's variance, and then goes on for the full look-back, also
while the average warms up; where the residual never comes down, the fit runs to its ceiling. By a sensor's likelihood the mean
over the bright pixels, too, has to come down, within its scatter (noise.likelihood): in a field of stars the sky is most of the
pixels and is down to its noise long before the stars are.

A fit that begins with another one's generator (fitting.warm_start) learns twice as fast: Adam, begun anew, throws it back for some
50 iterations, then it is at its best after 170 to 280 where a cold one takes 360 to 500 (ceiling 1800). Its minimum came where the
warm-up ends or up to 50 iterations later, and none came after that, so that half of the patience delivered the same as all of it (18
fits of three photographs of 128x128, sigma 25, the same picture and the next frame). The warm-up may not be halved: that delivered up
to 1.2 dB less. Known noise keeps its whole look-back, whose worst case was the best of those tried (bench/warm_start.py).

In simulated sensors' frames (bench/sensor.py, likelihood) that delivers within 0.54 dB of the best of the run in six frames of a
photograph (0.19 in five) and within 0.63 dB in six of a field of stars, where the mean over all pixels alone was 0.3 to 1.5 dB
below the best; in the photographs it cost nothing (0.07 dB in one). The warming average's own shorter look-back was up to 0.45 dB
better in the photographs and 0.2 to 0.7 dB worse in the stars, so the worst case decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dipengine.tasks.base import Recipe

PATIENCE_SHARE = 1 / 5  # of the iteration ceiling; the authors' 1000 never fires in runs of 1000
WARM_UP_SHARE = 1 / 12  # V starts at 0 and the first outputs are flat: a minimum there means nothing
MIN_WARM_UP = 20
WARM_START_SHARE = 1 / 2  # of the patience, for a fit that begins with another one's generator
RESIDUAL_INTERVAL = 5  # iterations between looks at the residual, when the noise is known


@dataclass(frozen=True)
class StopRule:
    """Thresholds of the stopping rule for a run of at most `ceiling` iterations."""

    ceiling: int
    patience: int  # iterations without a new minimum before the fit stops
    warm_up: int  # iterations in which no minimum counts
    lag: int  # iterations from a minimum to the average that is centred on it; at most the patience
    average_warm_up: bool = False  # the lag is shorter while the average is young

    @staticmethod
    def for_recipe(recipe: Recipe, *, warm_start: bool = False) -> "StopRule":
        """The rule for a recipe's ceiling and output average, and a fit that begins with another one's generator."""
        rule = StopRule.for_run(recipe.iterations, recipe.average_decay, recipe.average_warm_up)
        if not warm_start:
            return rule
        patience = max(round(rule.patience * WARM_START_SHARE), 1)
        return replace(rule, patience=patience, lag=min(rule.lag, patience))

    @staticmethod
    def for_run(ceiling: int, average_decay: float | None, average_warm_up: bool = False) -> "StopRule":
        """The rule for a ceiling and the decay of the delivered average (None: no average)."""
        warm_up = min(max(round(ceiling * WARM_UP_SHARE), MIN_WARM_UP), max(ceiling - 1, 0))
        patience = max(round(ceiling * PATIENCE_SHARE), 1)
        lag = round(1 / (1 - average_decay)) if average_decay else 0
        return StopRule(ceiling, patience, warm_up, min(lag, patience), average_warm_up)

    def lag_after(self, minimum: int) -> int:
        """Iterations from a minimum at iteration `minimum` to the average centred on it."""
        # Warming up, the average at iteration T looks back T / 10: centred on m where T = m + T / 10.
        return min(self.lag, round(minimum / 9)) if self.average_warm_up else self.lag


class VarianceWatch:
    """Follows the outputs' variance of one fit, says which states to keep and when to stop."""

    def __init__(self, rule: StopRule) -> None:
        self.rule = rule
        self._lowest = float("inf")
        self.minimum = 0  # iteration of the lowest variance so far; 0: none yet

    def note(self, iteration: int, variance: float) -> None:
        """Take the variance after `iteration` (1 is the first)."""
        past_warm_up = iteration > self.rule.warm_up or iteration >= self.rule.ceiling
        if past_warm_up and variance < self._lowest:
            self._lowest, self.minimum = variance, iteration

    def worth_keeping(self, iteration: int) -> bool:
        """True at the one iteration whose average is centred on the minimum so far."""
        return self.minimum > 0 and iteration == self.minimum + self.rule.lag_after(self.minimum)

    def exhausted(self, iteration: int) -> bool:
        """True when the lowest variance lies further back than the patience."""
        return self.minimum > 0 and iteration - self.minimum >= self.rule.patience

    def state(self) -> dict[str, float | int | None]:
        """What was seen so far (JSON-able)."""
        return {"lowest": self._lowest if self.minimum else None, "minimum": self.minimum}

    def load_state(self, state: Mapping[str, float | int | None]) -> None:
        """Go on from a saved state."""
        self.minimum = int(state["minimum"])
        self._lowest = float(state["lowest"]) if self.minimum else float("inf")
