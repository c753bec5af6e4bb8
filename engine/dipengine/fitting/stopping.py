"""When to stop: the fit has learnt the image and begins to learn the noise where its outputs move least.

ES-EMV (H. Wang et al., "Early Stopping for Deep Image Prior", TMLR 2023): the exponentially weighted variance of the
outputs falls while the image is fitted and rises when noise is; its minimum lies close to the best output. O(1) memory:

    d2 = mean |x - A|^2,   V <- (1-a) V + a (1-a) d2,   A <- (1-a) A + a x,   with A = x, V = 0 at the first frame.

What is delivered is an average over iterations, as a rule, in which the outputs' own unrest is gone: it is at its best later than
a single output. The variance is then taken over a window that fits the average's, a = 3 (1 - m) for a decay m, 0.03 for 0.99;
its minimum lies where the average is best. In twelve fits (six photographs of 128x128, 32 channels, sigma 25 and 50,
`bench/stopping.py`) this delivers 0.17 dB less than the best of the run in the mean and 0.61 at most; a = 0.1, with the average that
is centred on its minimum, delivered 0.52 and 1.56 dB less, and ran for longer. With little noise (sigma 10) the variance stays within
some percent of its minimum for hundreds of iterations, in some pictures while the image still gains and in others while it is spoilt:
patience counts from the last of these, and 0.04 to 1.35 dB were lost in five pictures and 3.8 in the sixth (as with a = 0.1).
`denoise` therefore estimates noise that nobody has told of, and where it is white takes it for known (noise.estimate).

Where there is no noise but something is missing, a part of the known pixels is held out of the fit, and their error takes the
variance's place; behind it the best state goes on for a while with all pixels (fitting.held_out).

Known noise needs no such statistic and takes none: by the discrepancy principle (Morozov 1966) the fit is done when the
delivered image's mean squared residual has come down to the noise's variance, and then goes on for the full look-back, also
while the average warms up; where the residual never comes down, the fit runs to its ceiling. By a sensor's likelihood the mean
over the bright pixels, too, has to come down, within its scatter (noise.likelihood): in a field of stars the sky is most of the
pixels and is down to its noise long before the stars are.

A fit that begins with another one's generator (fitting.warm_start) learns twice as fast: Adam, begun anew, throws it back for some
50 iterations, then it is at its best after 150 to 280 where a cold one takes 300 to 500 (ceiling 1800), and half of the patience
delivers the same as all of it. Known noise keeps its whole look-back, whose worst case was the best of those tried
(bench/warm_start.py).

In simulated sensors' frames (bench/sensor.py, likelihood) that delivers within 0.54 dB of the best of the run in six frames of a
photograph (0.19 in five) and within 0.63 dB in six of a field of stars, where the mean over all pixels alone was 0.3 to 1.5 dB
below the best; in the photographs it cost nothing (0.07 dB in one). The warming average's own shorter look-back was up to 0.45 dB
better in the photographs and 0.2 to 0.7 dB worse in the stars, so the worst case decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dipengine.tasks.base import Recipe

ES_ALPHA = 0.1  # the authors'
ES_ALPHA_OF_AVERAGE = 3.0  # times what the delivered average gives a new output
PATIENCE_SHARE = 1 / 10  # of the iteration ceiling; the authors' 1000 never fires in runs of 1000
MIN_PATIENCE = 40  # V's own memory
WARM_UP_SHARE = 1 / 24
MIN_WARM_UP = 60  # V starts at 0 and rises for some 30 iterations: a minimum there means nothing
PLATEAU = 1.05  # times the minimum: where there is little noise, the variance stays low for hundreds of iterations and wavers
WARM_START_SHARE = 1 / 2  # of the patience, for a fit that begins with another one's generator
LAG_SHARE = 1 / 5  # of the ceiling, at most
SETTLING = 5
RESIDUAL_INTERVAL = 5  # iterations between looks at the residual, when the noise is known or pixels are held out
HELD_PATIENCE = 200  # at most, with pixels held out
SHOWN_FOR = 150  # iterations with all pixels behind that, at most
SHOWN_SHARE = 10  # of the ceiling, one in so many


def es_alpha(average_decay: float | None) -> float:
    """ES-EMV's weight of a new output for a delivered average of that decay (None: the output itself is delivered)."""
    return ES_ALPHA if average_decay is None else min(ES_ALPHA, ES_ALPHA_OF_AVERAGE * (1 - average_decay))


@dataclass(frozen=True)
class StopRule:
    """Thresholds of the stopping rule for a run of at most `ceiling` iterations."""

    ceiling: int
    patience: int  # iterations since the variance was last about as low as ever, before the fit stops
    warm_up: int  # iterations in which no minimum counts
    lag: int  # with known noise, iterations from the residual's coming down to it to the end

    @staticmethod
    def for_recipe(recipe: Recipe, *, warm_start: bool = False) -> "StopRule":
        """The rule for a recipe's ceiling and output average, and a fit that begins with another one's generator."""
        rule = StopRule.for_run(recipe.iterations, recipe.average_decay)
        if not warm_start:
            return rule
        patience = max(round(rule.patience * WARM_START_SHARE), MIN_PATIENCE)
        return replace(rule, patience=patience)

    def with_pixels_held_out(self) -> "StopRule":
        """Their error is followed in place of the variance. It wavers less."""
        return replace(self, patience=min(self.patience, HELD_PATIENCE))

    @staticmethod
    def for_run(ceiling: int, average_decay: float | None) -> "StopRule":
        """The rule for a ceiling and the decay of the delivered average (None: no average)."""
        warm_up = min(max(round(ceiling * WARM_UP_SHARE), MIN_WARM_UP), max(ceiling - 1, 0))
        patience = max(round(ceiling * PATIENCE_SHARE), MIN_PATIENCE)
        lag = round(1 / (1 - average_decay)) if average_decay else 0
        return StopRule(ceiling, patience, warm_up, min(lag, max(round(ceiling * LAG_SHARE), 1)))

    @property
    def shown_for(self) -> int:
        """Iterations that a fit goes on from its best state with all pixels, where it held some out."""
        return min(max(self.ceiling // SHOWN_SHARE, 1), SHOWN_FOR)

    @property
    def settling(self) -> int:
        """Iterations that a minimum has to stand before its state is kept.

        The delivered average hardly moves in so few, and while the variance falls not every state is copied.
        """
        return min(self.lag, self.patience, SETTLING)


class VarianceWatch:
    """Follows the outputs' variance of one fit, or the error of pixels held out, says which states to keep and when to stop."""

    def __init__(self, rule: StopRule) -> None:
        self.rule = rule
        self._lowest = float("inf")
        self.minimum = 0  # iteration of the lowest variance so far; 0: none yet
        self._low = 0  # the last one whose variance was as low but for PLATEAU

    def note(self, iteration: int, variance: float) -> None:
        """Take the variance after `iteration` (1 is the first)."""
        if iteration <= self.rule.warm_up and iteration < self.rule.ceiling:
            return
        if variance < self._lowest:
            self._lowest, self.minimum = variance, iteration
        if variance <= PLATEAU * self._lowest:
            self._low = iteration

    def worth_keeping(self, iteration: int) -> bool:
        """True at the one iteration at which the minimum so far has settled."""
        return self.minimum > 0 and iteration == self.minimum + self.rule.settling

    def exhausted(self, iteration: int) -> bool:
        """True when the variance has not been about as low as ever for as long as the patience."""
        return self.minimum > 0 and iteration - self._low >= self.rule.patience

    def state(self) -> dict[str, float | int | None]:
        """What was seen so far (JSON-able)."""
        return {"lowest": self._lowest if self.minimum else None, "minimum": self.minimum, "low": self._low}

    def load_state(self, state: Mapping[str, float | int | None]) -> None:
        """Go on from a saved state."""
        self.minimum, self._low = int(state["minimum"]), int(state["low"])
        self._lowest = float(state["lowest"]) if self.minimum else float("inf")
