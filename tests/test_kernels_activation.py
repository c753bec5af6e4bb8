"""The output sigmoid's gradient against torch autograd, on windows, strides and threads."""

import pytest

torch = pytest.importorskip("torch")

from dipengine.errors import InputError  # noqa: E402
from dipengine.kernels import backend  # noqa: E402

native = backend.native
pytestmark = pytest.mark.skipif(native is None, reason="needs the native core")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (1, 100, 1), (64, 301, 3), (3, 2, 4)])
def test_it_is_autograds(shape, dtype):
    height, width, channels = shape
    canvas = torch.randn(height + 2, width + 3, channels + 1, dtype=dtype)
    raw = canvas[:height, :width, :channels].requires_grad_()
    x = torch.sigmoid(raw)
    d_x = torch.randn(shape, dtype=dtype)
    x.backward(d_x)
    value = torch.empty_like(canvas)[:height, :width, :channels].copy_(x.detach())  # with strides
    for threads in (1, 2, 3):
        d_raw = torch.full((height + 1, width, channels), torch.nan, dtype=dtype)
        native.sigmoid_backward(value, d_x, d_raw[:height], native.Pool(threads))
        torch.testing.assert_close(d_raw[:height], raw.grad, rtol=4 * torch.finfo(dtype).eps, atol=0)
        assert d_raw[height].isnan().all()


def test_what_does_not_fit_is_refused_in_a_sentence():
    x = torch.rand(4, 5, 3)
    for bad in (x[:3], x.double(), x.permute(1, 0, 2), x.bfloat16(), x[..., :2], x[0]):
        with pytest.raises(InputError):
            native.sigmoid_backward(x, bad, torch.empty_like(x))
    with pytest.raises(InputError):
        native.sigmoid_backward(x, x, torch.empty(3).expand(4, 5, 3))
