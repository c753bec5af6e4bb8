"""Adam: native and twin against torch.optim.Adam, the flat buffer, snapshots, cohorts through the binding."""

import pytest

torch = pytest.importorskip("torch")

from dipengine.errors import InputError  # noqa: E402
from dipengine.kernels import backend  # noqa: E402
from dipengine.kernels.adam import Adam  # noqa: E402

BOTH = pytest.mark.parametrize("kernels", ["native", "torch"])


def network(dtype=torch.float32, seed=0):
    """A convolution in channels_last memory, a norm and a layer of one weight; (name, parameter) pairs come with it."""
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.ReLU(), torch.nn.Conv2d(5, 1, 1))
    module = module.to(dtype).to(memory_format=torch.channels_last)
    return module, list(module.named_parameters())


def train(module, step, zero_grad, steps=12):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.rand(1, 3, 9, 9, generator=generator, dtype=torch.float64).to(next(module.parameters()).dtype)
        zero_grad()
        module(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        step()


@BOTH
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_training_follows_torch_optim_adam(kernels, dtype, tolerance):
    ours, named = network(dtype)
    theirs, _ = network(dtype)
    optimizer = Adam(named, learning_rate=0.01, kernels=kernels)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01)
    train(ours, optimizer.step, optimizer.zero_grad)
    train(theirs, reference.step, reference.zero_grad)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        if name != "0.bias":  # in front of a norm its gradient is rounding noise, which Adam blows up to full steps
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=name)
    assert optimizer.step_count == 12


@pytest.mark.parametrize("betas, eps", [((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-3), ((0.0, 0.0), 1e-8)])
def test_one_step_is_as_exact_as_torch_optim_adam(betas, eps):
    torch.manual_seed(3)
    errors = {"native": [], "torch": []}
    for seed in range(64):
        start, gradient = torch.randn(400), torch.randn(400) * 10 ** torch.empty(400).uniform_(-8, 2)
        exact = start.double().requires_grad_()
        exact.grad = gradient.double()
        torch.optim.Adam([exact], lr=0.01, betas=betas, eps=eps).step()
        plain = start.clone().requires_grad_()
        plain.grad = gradient.clone()
        torch.optim.Adam([plain], lr=0.01, betas=betas, eps=eps).step()
        parameter = torch.nn.Parameter(start.clone())
        optimizer = Adam([("p", parameter)], 0.01, betas, eps, kernels="native")
        optimizer.gradient.copy_(gradient)
        optimizer.step()
        change = (exact.detach() - start.double()).abs() + start.double().abs()
        errors["native"].append((parameter.detach().double() - exact.detach()) / change)
        errors["torch"].append((plain.detach().double() - exact.detach()) / change)
    native, theirs = (float(torch.cat(errors[k]).square().mean().sqrt()) for k in ("native", "torch"))
    assert native <= 2 * theirs + 2 * 2**-24


@BOTH
def test_parameters_and_gradients_are_views_of_flat_buffers(kernels):
    module, named = network()
    before = {name: parameter.detach().clone() for name, parameter in named}
    optimizer = Adam(named, kernels=kernels)
    for name, parameter in module.named_parameters():
        place = optimizer.slices[name]
        assert torch.equal(parameter, before[name])
        assert torch.equal(optimizer.parameters[place], before[name].contiguous().flatten())  # C order
    train(module, lambda: None, lambda: None, steps=1)
    assert all(optimizer.gradient[optimizer.slices[name]].any() for name in ("0.weight", "1.weight", "3.weight"))
    for _, parameter in named:
        assert parameter.grad.untyped_storage().data_ptr() == optimizer.gradient.untyped_storage().data_ptr()
    optimizer.zero_grad()
    assert not any(parameter.grad.any() for _, parameter in named)


@BOTH
def test_lost_gradients_and_moved_parameters_are_noticed(kernels):
    module, named = network()
    optimizer = Adam(named, kernels=kernels)
    module.zero_grad(set_to_none=True)
    with pytest.raises(InputError, match="0.weight"):
        optimizer.step()
    module, named = network()
    optimizer = Adam(named, kernels=kernels)
    named[1][1].data = named[1][1].data.clone()
    with pytest.raises(InputError, match="0.bias"):
        optimizer.step()


@BOTH
def test_a_snapshot_brings_back_the_same_run(kernels):
    module, named = network()
    optimizer = Adam(named, kernels=kernels)
    train(module, optimizer.step, optimizer.zero_grad, 3)
    snapshot = optimizer.snapshot()
    train(module, optimizer.step, optimizer.zero_grad, 4)
    first = optimizer.parameters.clone()
    optimizer.restore(snapshot)
    assert optimizer.step_count == 3
    train(module, optimizer.step, optimizer.zero_grad, 4)
    assert torch.equal(optimizer.parameters, first)


@BOTH
def test_learning_rate_can_be_changed_and_zero_gradients_move_nothing(kernels):
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = Adam([("p", parameter)], learning_rate=0.5, kernels=kernels)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(4))
    optimizer.learning_rate = 0.0
    optimizer.gradient.fill_(1)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(4))


@BOTH
def test_impossible_arguments_are_refused(kernels):
    _, named = network()
    other = ("double", torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    for parameters, options in (([], {}), ([*named, other], {}), (named, {"betas": (1.0, 0.9)}), (named, {"learning_rate": -1.0})):
        with pytest.raises(InputError):
            Adam(parameters, **options, kernels=kernels)


def test_bfloat16_gradients_and_shadow_through_the_binding():
    torch.manual_seed(0)
    p, g = torch.randn(1, 1000), torch.randn(1, 1000).bfloat16()
    m, v, shadow = torch.zeros_like(p), torch.zeros_like(p), torch.zeros(1, 1000, dtype=torch.bfloat16)
    steps, rate = torch.zeros(1, dtype=torch.int64), torch.tensor([0.01], dtype=torch.float64)
    reference = p.clone().requires_grad_()
    reference.grad = g.float()
    torch.optim.Adam([reference], lr=0.01).step()
    backend.native.adam([p], [g], [m], [v], shadows=[shadow], steps=steps, learning_rate=rate)
    torch.testing.assert_close(p, reference.detach(), rtol=1e-6, atol=1e-7)
    assert torch.equal(shadow, p.bfloat16()) and steps.item() == 1


def test_a_cohort_gives_each_fit_the_bits_it_has_alone():
    torch.manual_seed(1)
    p, g, m = torch.randn(3, 2, 700), torch.randn(3, 2, 700), torch.randn(3, 2, 700)
    v = torch.rand(3, 2, 700)
    steps, rates = torch.tensor([0, 5, 9]), torch.tensor([0.1, 0.01, 0.001], dtype=torch.float64)

    def run(fits, active=None):
        state = [tensor[fits].clone() for tensor in (p, g, m, v)]
        lists = [[tensor[:, 0], tensor[:, 1]] for tensor in state]  # two segments
        count = steps[fits].clone()
        backend.native.adam(*lists, steps=count, learning_rate=rates[fits], active=active)
        return state[0], count

    together, counts = run(slice(0, 3), torch.tensor([True, False, True]))
    assert counts.tolist() == [1, 5, 10] and torch.equal(together[1], p[1])
    for fit in (0, 2):
        assert torch.equal(together[fit], run(slice(fit, fit + 1))[0][0])
