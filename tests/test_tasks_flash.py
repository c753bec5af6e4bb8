"""Flash / no-flash: the authors' recipe, and a guide that is the code z and leaves its mark on the result."""

import numpy as np
import pytest
import torch

import dipengine
from conftest import TINY, synthetic_picture
from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass
from dipengine.tasks.flash import RECIPE

PICTURE = np.rint(synthetic_picture(30, 34) * 255).astype(np.uint8)


def test_the_recipe_is_the_authors():
    assert RECIPE.generator == Hourglass(
        input_depth=3, channels_down=(128,) * 5, channels_up=(128,) * 5, channels_skip=(4,) * 5,
        upsample=("nearest", "nearest", "bilinear", "bilinear", "bilinear"),
    )
    assert (RECIPE.code, RECIPE.learning_rate, RECIPE.iterations, RECIPE.perturbation) == ("image", 0.1, 600, 0.0)
    assert RECIPE.average_decay is None


@pytest.mark.parametrize("channels", [1, 3])
def test_z_is_the_guide(channels):
    guide = PICTURE[::-1, :, :channels]
    result = dipengine.flash(PICTURE, guide, **TINY)
    assert result.image.shape == PICTURE.shape and result.image.dtype == np.uint8
    assert result.record["parameters"]["code"]["kind"] == "image"
    z = result.generator.code.make(result.generator.canvas)
    np.testing.assert_allclose(z[:30, :34], guide / 255, atol=1e-7)


def test_the_guide_may_be_of_another_kind_than_the_picture():
    as_bytes = dipengine.flash(PICTURE, PICTURE, **TINY)
    as_words = dipengine.flash(PICTURE, PICTURE.astype(np.uint16) * 257, **TINY)
    np.testing.assert_array_equal(as_bytes.image, as_words.image)


def test_axes_hold_for_both_pictures():
    tensor = torch.from_numpy(PICTURE).permute(2, 0, 1)
    result = dipengine.flash(tensor, tensor, axes="CHW", **TINY)
    same = dipengine.flash(PICTURE, PICTURE, **TINY)
    np.testing.assert_array_equal(result.image.permute(1, 2, 0).numpy(), same.image)


def test_another_guide_gives_another_picture():
    first, second = (dipengine.flash(PICTURE, guide, **TINY).image for guide in (PICTURE, 255 - PICTURE[::-1]))
    assert (first != second).any()


def test_a_guide_of_another_size_is_refused():
    with pytest.raises(InputError, match="guide is 34x29 and the image 34x30"):
        dipengine.flash(PICTURE, PICTURE[1:], **TINY)
    with pytest.raises(InputError, match="needs guide"):
        dipengine.restore(PICTURE, "flash")


def test_flash_runs_its_length_unless_told_otherwise():
    settings = {name: value for name, value in TINY.items() if name != "stop"}
    assert dipengine.flash(PICTURE, PICTURE, **settings).record["parameters"]["stop"] == "fixed"
    assert dipengine.flash(PICTURE, PICTURE, stop="auto", **settings).record["parameters"]["stop"] == "auto"


@pytest.mark.parametrize("axes", [None, "HWC"])
def test_a_guide_that_is_no_array_is_named_in_one_sentence(axes):
    with pytest.raises(InputError, match="The guide is a list"):
        dipengine.flash(PICTURE, PICTURE.tolist(), axes=axes, **TINY)
