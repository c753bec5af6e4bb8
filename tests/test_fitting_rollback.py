"""Roll-back returns to weights that were good, does not loop for ever, and tells a new level from an accident."""

import pytest

from dipengine.errors import FitError
from dipengine.fitting.rollback import GIVE_UP_AFTER, HALVE_AFTER, INTERVAL, WARM_UP, Rollback


class Optimizer:
    learning_rate = 0.01


class CountingFit:
    """Its state is one number."""

    def __init__(self):
        self.optimizer = Optimizer()
        self.state = 0

    def snapshot(self):
        return self.state

    def restore(self, state):
        self.state = state


def settled(losses_from=0.01):
    """A fit past its warm-up, with the iteration reached."""
    fit = CountingFit()
    guard = Rollback(fit, 5.0)
    for iteration in range(1, WARM_UP + INTERVAL + 6):
        fit.state = iteration
        assert not guard.check(iteration, losses_from)
    return fit, guard, iteration


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.04])
def test_a_bad_loss_returns_to_the_last_snapshot(bad):
    fit, guard, iteration = settled()
    assert guard.check(iteration + 1, bad)
    assert fit.state == WARM_UP + INTERVAL
    assert guard.count == 1


def test_a_loss_within_the_threshold_passes():
    fit, guard, iteration = settled()
    assert not guard.check(iteration + 1, 0.03)
    assert fit.state == iteration and guard.count == 0


def test_a_non_finite_loss_that_stays_is_an_error():
    fit, guard, iteration = settled()
    with pytest.raises(FitError, match="diverges"):
        for extra in range(1, GIVE_UP_AFTER + 2):
            guard.check(iteration + extra, float("nan"))


def test_a_finite_loss_that_stays_is_the_new_level():
    fit, guard, iteration = settled()
    outcomes = [guard.check(iteration + extra, 0.5) for extra in range(1, GIVE_UP_AFTER + 3)]
    assert outcomes == [True] * GIVE_UP_AFTER + [False, False]


def test_repeated_failures_halve_the_step_size():
    fit, guard, iteration = settled()
    for extra in range(1, HALVE_AFTER + 1):
        assert fit.optimizer.learning_rate == 0.01
        guard.check(iteration + extra, float("nan"))
    assert fit.optimizer.learning_rate == 0.005


def test_the_first_iterations_may_jump_but_not_be_non_finite():
    fit = CountingFit()
    guard = Rollback(fit, 5.0)
    assert not guard.check(1, 0.01)
    assert not guard.check(2, 1.0)
    with pytest.raises(FitError, match="first loss"):
        Rollback(CountingFit(), 5.0).check(1, float("nan"))
