"""ES-EMV keeps the state at a minimum of the variance, not at its start, and waits as long as its patience says."""

import numpy as np
import pytest

import dipengine
from conftest import TINY
from dipengine.fitting.stopping import StopRule, VarianceWatch, es_alpha


def follow(variances, ceiling, decay=0.99):
    """Feed a sequence; return (iteration stopped or None, iteration kept last or None)."""
    watch = VarianceWatch(StopRule.for_run(ceiling, decay))
    kept = None
    for iteration, variance in enumerate(variances, 1):
        watch.note(iteration, variance)
        if watch.worth_keeping(iteration):
            kept = iteration
        if watch.exhausted(iteration):
            return iteration, kept
    return None, kept


def test_stops_one_patience_after_the_minimum_and_keeps_the_average_of_it_once_it_has_settled():
    iterations = np.arange(1, 1001)
    stopped, kept = follow((iterations - 400) ** 2 + 1.0, 1000)
    assert stopped == 400 + StopRule.for_run(1000, 0.99).patience
    assert kept == 400 + 5


def test_a_variance_that_stays_low_does_not_use_up_the_patience():
    """Where there is little noise it wavers within some percent for hundreds of iterations, in which the image still gains."""
    iterations = np.arange(1, 1501)
    low = np.where(iterations < 900, 1.0 + 0.04 * np.sin(iterations / 40), 2.0)
    rule = StopRule.for_run(1800, 0.99)
    last = max(iteration for iteration in iterations if low[iteration - 1] <= 1.05 * low[rule.warm_up:].min())
    assert 800 < last < 900
    stopped, kept = follow(low, 1800)
    assert stopped == last + rule.patience and low[kept - 1 - rule.settling] == low[rule.warm_up : 900].min()


def test_minima_that_do_not_stand_are_not_kept():
    iterations = np.arange(1, 1001)
    bumpy = (iterations - 400) ** 2 + 1.0 + 900 * (iterations % 4 == 0)  # the lowest so far is never older than two iterations
    watch, kept = VarianceWatch(StopRule.for_run(1000, 0.99)), []
    for iteration, variance in enumerate(bumpy, 1):
        watch.note(iteration, variance)
        kept += [iteration] * watch.worth_keeping(iteration)
    assert kept == [399 + 5]


def test_the_variance_looks_back_as_the_delivered_average_does():
    assert es_alpha(0.99) == pytest.approx(0.03) and es_alpha(0.999) == pytest.approx(0.003)
    assert es_alpha(None) == es_alpha(0.5) == 0.1  # the authors' own


def test_without_an_average_the_minimum_itself_is_kept():
    iterations = np.arange(1, 1001)
    assert follow((iterations - 400) ** 2 + 1.0, 1000, decay=None)[1] == 400


def test_the_variance_of_the_first_frames_is_not_a_minimum():
    # V starts at 0: without the warm-up guard the first frame would win.
    iterations = np.arange(1, 1001)
    variances = np.where(iterations < 40, 0.0, (iterations - 500.0) ** 2 + 1)
    assert follow(variances, 1000, decay=None)[1] == 500


def test_a_variance_that_keeps_falling_runs_to_the_ceiling():
    stopped, kept = follow(1.0 / np.arange(1, 601), 600, decay=None)
    assert stopped is None and kept == 600


@pytest.mark.parametrize("ceiling", [1, 2, 30])
def test_the_shortest_runs_end_at_their_ceiling_at_the_latest(ceiling):
    stopped, _ = follow(np.ones(ceiling), ceiling)
    assert stopped is None or stopped <= ceiling


def test_the_kept_state_is_never_beyond_the_patience():
    for ceiling in (10, 100, 300, 1000):
        rule = StopRule.for_run(ceiling, 0.99)
        assert rule.settling <= rule.patience


@pytest.mark.parametrize("ceiling", [100, 150, 500])
def test_short_runs_do_not_end_in_the_variances_own_rise(ceiling):
    """From 0 it rises for some 30 iterations, falls for 100 and more, and wavers."""
    iterations = np.arange(1, ceiling + 1)
    falling = np.minimum(iterations / 30, 1) * np.exp(-iterations / 60) * (1 + 0.1 * np.sin(iterations / 5))
    stopped, kept = follow(falling, ceiling)
    assert stopped is None and kept > ceiling - 30


def test_patience_scales_with_the_ceiling():
    assert StopRule.for_run(6000, 0.99).patience == 10 * StopRule.for_run(600, 0.99).patience


def test_known_noise_stops_by_discrepancy_at_the_residual_of_the_noise(picture):
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 25, picture.shape), 0, 255).astype(np.float32)
    settings = {**TINY, "channels": 16, "iterations": 600, "stop": "auto", "value_range": (0, 255)}
    result = dipengine.denoise(noisy, sigma=25, **settings)
    assert result.record["stop_reason"] == "discrepancy"
    # The average's look-back earlier, the residual had just come down to sigma^2.
    crossed = result.record["iterations"] - 100
    then = dipengine.denoise(noisy, sigma=25, **{**settings, "stop": "fixed", "iterations": crossed})
    residual = np.mean((then.image - noisy) ** 2)
    assert 0.9 * 25**2 < residual <= 25**2 * 1.0001


def test_auto_stop_ends_before_its_ceiling_and_says_so(noisy):
    settings = {**TINY, "channels": 16, "iterations": 1000, "stop": "auto", "noise": "unknown"}
    result = dipengine.denoise(noisy, **settings)
    assert result.record["stop_reason"] == "variance"
    assert result.record["delivered_iteration"] < result.record["iterations"] < 1000


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_known_noise_leaves_the_variance_no_say(noisy, kernels):
    """Noise stated far below what the fit comes down to: only the ceiling ends it, though blind the variance would have."""
    settings = {**TINY, "channels": 16, "iterations": 400, "stop": "auto", "kernels": kernels, "precision": "fp32"}
    blind = dipengine.denoise(noisy, noise="unknown", **settings).record
    assert blind["stop_reason"] == "variance" and blind["iterations"] < 400
    known = dipengine.denoise(noisy, sigma=1, **settings).record
    assert (known["stop_reason"], known["iterations"], known["delivered_iteration"]) == ("iterations", 400, 400)
