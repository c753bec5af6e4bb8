"""The downsampling operator against a plain sum over the two-dimensional filter, and what any resampler must satisfy."""

import math

import numpy as np
import pytest
import torch

from dipengine.errors import InputError
from dipengine.tasks.downsampling import KERNELS, Downsampling, filter_taps


def lanczos_2d(factor: int, support: int, length: int) -> np.ndarray:
    """The filter by its formula, tap by tap, normalised as a whole (not separably)."""

    def value(distance: float) -> float:
        if distance == 0:
            return 1.0
        return (
            support * math.sin(math.pi * distance) * math.sin(math.pi * distance / support)
            / (math.pi * math.pi * distance * distance)
        )

    centre = (length - 1) / 2
    taps = np.array(
        [[value((i - centre) / factor) * value((j - centre) / factor) for j in range(length)] for i in range(length)]
    )
    return taps / taps.sum()


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("support", [2, 3])
def test_lanczos_equals_the_authors_half_phase_filter_on_replicated_borders(factor, support):
    # Their length at phase 0.5 is 2*support*factor, their padding (length - factor) / 2 on every side.
    length = 2 * support * factor
    taps = lanczos_2d(factor, support, length)
    image = torch.rand(1, 3, 6 * factor, 5 * factor, dtype=torch.float64)
    padded = torch.nn.functional.pad(image, [(length - factor) // 2] * 4, mode="replicate")
    kernel = torch.from_numpy(taps).expand(3, 1, length, length)
    expected = torch.nn.functional.conv2d(padded, kernel, stride=factor, groups=3)
    got = Downsampling(factor, f"lanczos{support}").apply(image)
    assert got.shape == (1, 3, 6, 5)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel, width, deviation", [("gauss12", 7, 1.0), ("gauss1sq2", 9, math.sqrt(2))])
def test_aligned_gaussians_equal_the_authors_phase_zero_filter(kernel, width, deviation):
    offsets = np.arange(width) - width // 2
    taps = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * deviation**2))
    taps /= taps.sum()
    image = torch.rand(1, 1, 12, 16, dtype=torch.float64)
    padded = torch.nn.functional.pad(image, [width // 2] * 4, mode="replicate")
    expected = torch.nn.functional.conv2d(padded, torch.from_numpy(taps)[None, None], stride=2)
    got = Downsampling(2, kernel, centred=False).apply(image)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_box_is_the_mean_of_each_block(factor):
    image = torch.rand(1, 2, 3 * factor, 4 * factor, dtype=torch.float64)
    expected = torch.nn.functional.avg_pool2d(image, factor)
    torch.testing.assert_close(Downsampling(factor, "box").apply(image), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_a_ramp_stays_where_it_was(kernel, factor):
    # Centred: small pixel i lies over the middle of its block, factor*i + (factor - 1)/2, away from the borders.
    ramp = torch.arange(16 * factor, dtype=torch.float64).expand(1, 1, 16 * factor, -1)
    small = Downsampling(factor, kernel).apply(ramp)[0, 0, 8]
    expected = factor * torch.arange(16, dtype=torch.float64) + (factor - 1) / 2
    torch.testing.assert_close(small[6:10], expected[6:10], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3)])
def test_any_size_gives_one_small_pixel_a_block(kernel, factor, size):
    constant = torch.full((1, 3, size[0] * factor, size[1] * factor), 0.25, dtype=torch.float64)
    small = Downsampling(factor, kernel).apply(constant)
    assert small.shape == (1, 3, *size)
    torch.testing.assert_close(small, torch.full_like(small, 0.25))


def test_unknown_kernels_and_factors_are_refused():
    with pytest.raises(InputError, match="no downsampler"):
        filter_taps("cubic", 2)
    with pytest.raises(InputError, match="factor is 0"):
        filter_taps("box", 0)
