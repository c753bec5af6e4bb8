"""Operators of the caller's own: what works, in which units, and what is refused before the fit."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

import dipengine
from conftest import TINY, synthetic_picture
from dipengine.errors import InputError

PICTURE = (synthetic_picture(24, 28) * 4000 + 300).astype(np.float32)


def halve(image):
    return avg_pool2d(image, 2)


class Physics:
    """Like a deepinv physics: called, it adds noise; `A` is the clean operator."""

    def A(self, x, **_):
        return x[:, :, ::2, ::3]

    def __call__(self, x):
        raise AssertionError("the noisy call is not for fitting")


def test_the_operator_sees_data_units_on_the_restored_shape():
    seen = []

    def operator(image):
        seen.append((tuple(image.shape), image.dtype, image.is_contiguous(), float(image.detach().min())))
        return halve(image)

    result = dipengine.restore(PICTURE[::2, ::2], operator=operator, output_shape=(24, 28), **TINY)
    assert result.image.shape == (24, 28, 3) and result.image.dtype == np.float32
    assert {entry[:3] for entry in seen} == {((1, 3, 24, 28), torch.float32, True)}
    assert min(entry[3] for entry in seen) >= PICTURE.min() - 1
    assert result.record["task"] == "custom" and "operator" in result.record["parameters"]["operator"]


def test_an_operator_that_changes_constants_is_fitted_in_its_own_units():
    """Twice the picture plus a thousand: only in data units does the restored image come back to the picture."""
    grey = PICTURE[:, :, :1]
    result = dipengine.restore(
        2 * grey + 1000, operator=lambda x: 2 * x + 1000, value_range=(0, 5000), channels=16, levels=2,
        iterations=200, stop="fixed", threads=1,
    )
    assert abs(result.image - grey).mean() < 0.05 * np.ptp(grey)


def test_a_physics_object_is_used_by_its_A():
    small = PICTURE[::2, ::3]
    result = dipengine.restore(small, task="custom", operator=Physics(), output_shape=PICTURE.shape, **TINY)
    assert result.image.shape == PICTURE.shape
    assert result.record["parameters"]["operator"].endswith("Physics")


def test_channels_may_come_from_the_operator():
    grey = PICTURE.mean(axis=2)
    result = dipengine.restore(grey, operator=lambda x: x.mean(1, keepdim=True), output_shape=PICTURE.shape, **TINY)
    assert result.image.shape == PICTURE.shape


def test_modules_work_and_the_fit_approaches_the_data():
    module = torch.nn.AvgPool2d(2)
    settings = {**TINY, "iterations": 150, "channels": 16}
    result = dipengine.restore(PICTURE[::2, ::2], operator=module, output_shape=(24, 28), **settings)
    assert result.history.loss[-1] < result.history.loss[0] / 5


def test_missing_data_never_reaches_the_fit():
    mask = np.ones((12, 14), bool)
    mask[2:5, 3:9] = False
    given = {"operator": halve, "output_shape": (24, 28), "mask": mask, "value_range": (0, 5000), **TINY}
    first, second = (
        dipengine.restore(np.where(mask[:, :, None], PICTURE[::2, ::2], value).astype(np.float32), **given)
        for value in (0, 5000)
    )
    np.testing.assert_array_equal(first.image, second.image)


@pytest.mark.parametrize(
    "operator, message",
    [
        (5, "is a int"),
        (lambda x: x.detach().numpy(), "returns a ndarray"),
        (lambda x: None, "returns a NoneType"),
        (lambda x: x[:, :, ::2], "output_shape"),
        (lambda x: x[0], "output_shape"),
        (lambda x: x.detach(), "no gradient"),
        (lambda x: torch.from_numpy(x.detach().numpy()), "no gradient"),
        (lambda x: torch.round(x), "zero gradient"),
        (lambda x: x.double(), "dtype"),
        (lambda x: torch.log(x - 1e9), "NaN"),
        (lambda x: torch.sqrt((x - x.min()).abs() * 0), "non-finite gradient"),
        (lambda x: torch.ones_like(x).requires_grad_(), "no gradient"),
        (lambda x: x.no_such_method(), "no_such_method"),
    ],
)
def test_unusable_operators_are_one_sentence(operator, message):
    with pytest.raises(InputError, match=message) as caught:
        dipengine.restore(PICTURE, operator=operator, **TINY)
    assert "\n" not in str(caught.value)


def test_an_operator_of_differences_is_not_taken_for_one_without_gradient():
    rows = PICTURE[1:, :, :] - PICTURE[:-1, :, :]
    result = dipengine.restore(
        np.abs(rows), operator=lambda x: (x[:, :, 1:] - x[:, :, :-1]).abs(), output_shape=PICTURE.shape,
        value_range=(0, 5000), **TINY,
    )
    assert result.image.shape == PICTURE.shape


@pytest.mark.parametrize("shape", [(0, 5), (24.0, 28), "wide", 7, (1, 2, 3, 4), (True, 5)])
def test_impossible_output_shapes_are_refused(shape):
    with pytest.raises(InputError, match="output_shape"):
        dipengine.restore(PICTURE, operator=lambda x: x, output_shape=shape, **TINY)


def test_other_tasks_take_no_operator():
    with pytest.raises(InputError, match="no option 'operator'"):
        dipengine.restore(PICTURE, "denoise", operator=halve)
    with pytest.raises(InputError, match="needs operator"):
        dipengine.restore(PICTURE, "custom")


@pytest.mark.parametrize("shape", [np.array([24, 28]), (np.int64(24), 28, np.int32(3)), torch.Size([24, 28])], ids=str)
def test_whole_numbers_of_any_library_are_an_output_shape(shape):
    result = dipengine.restore(PICTURE[::2, ::2], operator=halve, output_shape=shape, **TINY)
    assert result.image.shape == (24, 28, 3)
    json.dumps(result.record)
