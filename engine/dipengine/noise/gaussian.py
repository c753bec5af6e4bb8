"""Additive Gaussian noise of known standard deviation: what the knowledge is good for.

The data term stays the squared error (it is the negative log-likelihood); the standard deviation chooses the
perturbation of z (the authors' 1/30, 1/20 at sigma 50 of 255) and says how well the image may be fitted: by the
discrepancy principle (Morozov) a restored image whose mean squared residual falls below sigma^2 has begun to
reproduce the noise.
"""

from __future__ import annotations

from dipengine.errors import InputError

STRONG_NOISE = 37.5 / 255  # half-way between the two levels for which the authors name a perturbation


def checked_sigma(sigma: float, data_range: float) -> float:
    """Standard deviation in [0, 1] units from one in data units; raises InputError unless finite and above 0."""
    if not (0 < sigma < float("inf")):
        raise InputError(f"sigma is {sigma:g}; give the noise's standard deviation in the image's own units, above 0.")
    unit = sigma / data_range
    if unit >= 1:
        raise InputError(
            f"sigma {sigma:g} is as large as the image's whole range ({data_range:g}); it is in the image's own units "
            f"(0..255 for 8 bits, 0..65535 for 16 bits, data units for float)."
        )
    return unit


def perturbation_for(sigma: float) -> float:
    """Standard deviation of the perturbation of z for noise `sigma` (in [0, 1] units): 1/30, or 1/20 when strong."""
    return 1 / 20 if sigma >= STRONG_NOISE else 1 / 30
