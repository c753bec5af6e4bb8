"""Super-resolution: the delivered image, made small again, is the small image.

Of all images whose small image is x0 this takes the one nearest to what the generator painted, x + A^+ (x0 - A x), with the
pseudo-inverse A^+ = A' (A A')^-1 of the downsampling A. Where x0 holds the truth's small image, the truth is one of them, so that no
image gets further from it (M. Irani, S. Peleg, "Improving Resolution by Image Registration", 1991, do it step by step). A acts on
rows and columns apart, and so does A^+.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dipengine.images.namespaces import beside, cast, namespace
from dipengine.tasks.downsampling import Downsampling

# Of a bound of the eigenvalues of A A', added to all: what a filter has nearly wiped out is not made of rounding errors, which the
# wider Gaussian would enlarge eleven times.
_RIDGE = {"gauss1sq2": 1e-2}
_LITTLE_RIDGE = 1e-3
_ROUNDS = 4
_KEPT_SIDE = 1024  # pixels; inverses of larger ones are made anew


class BackProjection:
    """Agreement of an image [H, W, C] with the small one, `target` [h, w, C], where that is known (bool [h, w]; None: everywhere);
    elsewhere its small image stays what it is.

    bounded: no image leaves [0, 1], which integers could not follow; beside black and white it agrees nearly, then.
    """

    def __init__(self, operator: Downsampling, target: Any, known: Any = None, *, bounded: bool = False) -> None:
        self._operator = operator
        self._target = target
        self._known = known
        self._bounded = bounded

    def apply(self, image: Any) -> Any:
        """The nearest image that agrees, float32 [H, W, C], an array like the one given."""
        xp = namespace(image)
        painted = cast(image, xp.float64)
        height, width, _ = (int(side) for side in painted.shape)
        sides = height, width
        residual = cast(self._target, xp.float64) - _along(painted, *(matrix(self._operator, side) for side in sides))
        if self._known is not None:
            residual = xp.where(self._known[:, :, None], residual, xp.zeros_like(residual))
        inverses = [_pseudo_inverse(self._operator, side) for side in sides]
        painted = painted + _along(residual, *inverses)
        return cast(self._within(painted, sides, inverses) if self._bounded else painted, xp.float32)

    def _within(self, agreeing: Any, sides: tuple[int, int], inverses: list[np.ndarray]) -> Any:
        """Cut off at 0 and 1, and what that takes from the small image given back around it, a few times in turn."""
        xp = namespace(agreeing)
        small = _along(agreeing, *(matrix(self._operator, side) for side in sides))
        bounded = xp.clip(agreeing, 0.0, 1.0)
        for _ in range(_ROUNDS):
            lost = small - _along(bounded, *(matrix(self._operator, side) for side in sides))
            bounded = xp.clip(bounded + _along(lost, *inverses), 0.0, 1.0)
        return bounded


def matrix(operator: Downsampling, side: int) -> np.ndarray:
    """A along one axis: float64 [ceil(side / factor), side]."""
    taps, factor = operator.taps, operator.factor
    count = -(-side // factor)
    places = factor * np.arange(count)[:, None] - operator.before + np.arange(len(taps))
    made = np.zeros((count, side))
    np.add.at(made, (np.arange(count)[:, None], np.clip(places, 0, side - 1)), np.broadcast_to(taps, places.shape))
    return made


def _pseudo_inverse(operator: Downsampling, side: int) -> np.ndarray:
    """Of `matrix`: float64 [side, ceil(side / factor)]."""
    return (_kept_inverse if side <= _KEPT_SIDE else _made_inverse)(operator, side)


def _made_inverse(operator: Downsampling, side: int) -> np.ndarray:
    made = matrix(operator, side)
    gram = made @ made.T
    gram[np.diag_indices_from(gram)] += _RIDGE.get(operator.kernel, _LITTLE_RIDGE) * np.linalg.norm(gram, np.inf)
    return np.linalg.solve(gram, made).T


_kept_inverse = lru_cache(maxsize=4)(_made_inverse)  # tiles and series are of few sizes


def _along(image: Any, rows: np.ndarray, columns: np.ndarray) -> Any:
    """[H, W, C] float64: `rows` applied along the first axis and `columns` along the second."""
    return _applied(_applied(image, rows, 0), columns, 1)


def _applied(image: Any, weights: np.ndarray, axis: int) -> Any:
    """[n, m] weights along an axis of m."""
    xp = namespace(image)
    image = xp.moveaxis(image, axis, 0)
    shape = tuple(image.shape)
    made = xp.matmul(beside(weights, image), xp.reshape(image, (shape[0], -1)))
    return xp.moveaxis(xp.reshape(made, (len(weights), *shape[1:])), 0, axis)
