"""Where tiles lie and how they are blended, for ragged sizes too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipengine.errors import InputError
from dipengine.tiling import TileGrid


def sums(grid, height, width):
    """The weights of all tiles added up over the output, float64 [H, W], and how many tiles cover each pixel."""
    scale = grid.rows.scale
    total, covered = np.zeros((height * scale, width * scale)), np.zeros((height * scale, width * scale), int)
    for tile in grid:
        rows, columns = grid.weights(tile.index)
        assert rows.min() >= 0 and columns.min() >= 0
        total[tile.output_rows, tile.output_columns] += rows[:, None] * columns
        covered[tile.output_rows, tile.output_columns] += 1
    return total, covered


@pytest.mark.parametrize(
    "height, width, side, overlap, options",
    [
        (203, 331, 96, 16, {"step": 32}),
        (97, 65, 64, 32, {"step": 32}),  # more than two tiles meet
        (40, 52, 96, 16, {"step": 32}),  # smaller than a tile
        (1, 500, 64, 8, {"step": 32}),
        (500, 1, 64, 8, {"step": 32}),
        (192, 256, 64, 0, {"step": 32}),
        (301, 203, 64, 0, {}),
        (65, 150, 48, 8, {"scale": 4, "step": 32, "smallest": 64, "guards": (2, 2)}),
        (101, 77, 40, 4, {"scale": 3, "step": 32, "smallest": 64, "guards": (2, 2)}),
        (200, 150, 120, 16, {"step": 32, "smallest": 64, "margins": (6, 10), "guards": (3, 5)}),
    ],
)
def test_weights_sum_to_one_everywhere(height, width, side, overlap, options):
    total, covered = sums(TileGrid.of(height, width, side, overlap, **options), height, width)
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
    assert covered.min() >= 1


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(8, 130), st.integers(0, 64), st.integers(1, 3), st.integers(0, 4))
def test_any_axis_is_covered_by_equal_tiles_that_overlap_enough(length, side, overlap, scale, guard):
    try:
        grid = TileGrid.of(length, 1, side, overlap, scale=scale, step=8, guards=(guard, 0))
    except InputError:
        return
    axis = grid.rows
    assert axis.starts[0] == 0 and axis.starts[-1] + axis.tile == length and axis.tile <= side
    for first, second in zip(axis.starts, axis.starts[1:]):
        assert first < second and first + axis.tile - second >= overlap + 2 * guard
    if axis.count > 1:
        assert axis.tile * scale % 8 == 0
        for index in range(axis.count):
            weights = axis.weights(index)
            inner = weights[: guard * scale] if index else weights[:0]
            outer = weights[len(weights) - guard * scale :] if index + 1 < axis.count else weights[:0]
            assert not inner.any() and not outer.any()
    total, _ = sums(grid, length, 1)
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)


def test_the_ramp_is_a_raised_cosine_over_the_overlap():
    grid = TileGrid.of(112, 64, 64, 16, step=16)
    assert len(grid) == 2 and grid.rows.starts == (0, 48)
    ramp = 0.5 + 0.5 * np.cos(np.pi * (np.arange(16) + 0.5) / 16)
    np.testing.assert_allclose(grid.weights(0)[0], np.concatenate([np.ones(48), ramp]), atol=1e-15)
    np.testing.assert_allclose(grid.weights(1)[0], np.concatenate([ramp[::-1], np.ones(48)]), atol=1e-15)


def test_canvases_waste_nothing_and_tiles_are_no_longer_than_covering_takes():
    deblur = TileGrid.of(300, 300, 128, 16, step=32, smallest=64, margins=(10, 0), guards=(5, 0))
    assert (deblur.rows.tile + 10) % 32 == 0 and deblur.columns.tile % 32 == 0
    enlarge = TileGrid.of(300, 300, 50, 8, scale=4, step=32, smallest=64)
    assert enlarge.rows.tile * 4 % 32 == 0
    assert TileGrid.of(550, 64, 512, 32, step=32).rows.tile == 320  # two of 320, not of 512


def test_windows_are_those_of_input_and_output():
    grid = TileGrid.of(100, 60, 40, 8, scale=2, step=16)
    tile = grid[len(grid) - 1]
    assert (tile.rows.stop, tile.columns.stop) == (100, 60)
    assert (tile.output_rows, tile.output_columns) == (slice(2 * tile.top, 200), slice(2 * tile.left, 120))
    assert [tile.index for tile in grid] == list(range(grid.rows.count * grid.columns.count))
    with pytest.raises(IndexError):
        grid[len(grid)]


@pytest.mark.parametrize(
    "side, overlap, options, words",
    [
        (20, 4, {"step": 32}, "at least 32"),
        (40, 4, {"step": 32, "smallest": 64}, "at least 64"),
        (64, 33, {"step": 32}, "0 to 32"),
        (64, -1, {"step": 32}, "0 to 32"),
        (64, 8, {"step": 32, "guards": (15, 0)}, "0 to 2 "),
        (64, 8, {"step": 32, "guards": (40, 0)}, "larger side"),
    ],
)
def test_impossible_tiles_are_refused(side, overlap, options, words):
    with pytest.raises(InputError, match=words) as error:
        TileGrid.of(200, 200, side, overlap, **options)
    assert str(error.value).endswith(".")
