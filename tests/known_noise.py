"""What tests of stopping on known noise share."""


def crossing_before(iterations: int) -> int:
    """The iteration at which the residual came down to the noise, of a run that ended by discrepancy after `iterations`.

    The run goes on for the average's look-back: 100 iterations at decay 0.99, and a tenth of the run while the average
    warms up (decay (t + 1) / (t + 10)), which is a ninth of the iterations before. The residual is looked at every fifth.
    """
    (crossing,) = (m for m in range(5, iterations, 5) if m + min(100, round(m / 9)) == iterations)
    return crossing
