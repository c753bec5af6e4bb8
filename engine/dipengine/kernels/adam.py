"""Adam (D. Kingma, J. Ba, ICLR 2015) over one flat buffer that holds all parameters of a network.

    m = m + (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2;  p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

PyTorch's form and order of operations, as one native pass over memory (csrc/ops/adam) or as plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipengine.errors import InputError
from dipengine.kernels import backend, pool, workspace
from dipengine.kernels.backend import native


@dataclass(frozen=True)
class AdamState:
    """A copy of parameters and moments, flat [count] in the optimiser's order, and the number of updates done."""

    parameters: Tensor
    m: Tensor
    v: Tensor
    step: int


class Adam:
    """Adam for one fit.

    Moves the parameters into one flat buffer: from then on each is a view of it, in C order of its shape (weights in
    `weight_order`) whatever its memory order was, and its .grad is a view of a flat gradient. Gradients add up until `zero_grad`.
    Native takes float32 (or float64) in CPU memory, and float32 on a CUDA device where the core has kernels for it; "auto"
    takes the twin elsewhere.

    learning_rate may be set at any time. `parameters`, `gradient`, `m`, `v` are the flat tensors, `names` and `slices`
    say what lies where.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        kernels: str = "auto",
        weight_order: str = "oihw",
    ) -> None:
        """weight_order: how convolution weights [out, in, k, k] lie in the buffer; "hwio" is what the fused ops read.

        Raises InputError for no parameters, mixed dtypes or devices, or numbers out of range."""
        named = list(named_parameters)
        if not named:
            raise InputError("Adam was given no parameters; pass those that require a gradient.")
        first = named[0][1]
        if any(p.dtype != first.dtype or p.device != first.device for _, p in named):
            raise InputError("Adam was given parameters of several dtypes or devices; move them to one of each.")
        if not (learning_rate >= 0 and all(0 <= beta < 1 for beta in betas) and eps >= 0):
            raise InputError(f"Adam was given learning rate {learning_rate}, betas {betas}, eps {eps}; betas lie in "
                             "[0, 1), the others are not negative.")
        self.learning_rate = learning_rate
        self.betas = betas
        self.eps = eps
        self.kernels = backend.choose(kernels, first, on_cuda=first.dtype == torch.float32)
        self._axes = {"oihw": (0, 1, 2, 3), "hwio": (2, 3, 1, 0)}[weight_order]
        self.names = tuple(name for name, _ in named)
        self.slices: dict[str, slice] = {}
        self._home([parameter for _, parameter in named])
        self._step = torch.zeros(1, dtype=torch.int64)

    @property
    def step_count(self) -> int:
        """Updates done."""
        return int(self._step.item())

    def zero_grad(self) -> None:
        """Set every gradient to zero, in one fill."""
        self.gradient.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients held. Raises InputError when a parameter or .grad was bound to other memory."""
        self._check_bindings()
        if self.kernels == "native":
            self._step_native()
        else:
            self._step_torch()

    def snapshot(self) -> AdamState:
        """Parameters, moments and step, copied."""
        return AdamState(self.parameters.clone(), self.m.clone(), self.v.clone(), self.step_count)

    def restore(self, state: AdamState) -> None:
        """Return to a snapshot (of an optimiser of the same parameters). Learning rate and gradients stay."""
        if state.parameters.shape != self.parameters.shape:
            raise InputError(f"The snapshot holds {state.parameters.numel()} parameters, this optimiser "
                             f"{self.parameters.numel()}; restore one of the same network.")
        self.parameters.copy_(state.parameters)
        self.m.copy_(state.m)
        self.v.copy_(state.v)
        self._step.fill_(state.step)

    def _home(self, parameters: list[nn.Parameter]) -> None:
        count = sum(parameter.numel() for parameter in parameters)
        self.parameters = torch.empty(count, dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradient, self.m, self.v = (torch.zeros_like(self.parameters) for _ in range(3))
        self._bound: list[tuple[nn.Parameter, Tensor, int]] = []
        offset = 0
        for name, parameter in zip(self.names, parameters):
            place = self.slices[name] = slice(offset, offset + parameter.numel())
            home = self._view(self.parameters[place], parameter.shape)
            home.copy_(parameter.detach())
            parameter.data = home
            parameter.grad = self._view(self.gradient[place], parameter.shape)
            self._bound.append((parameter, parameter.grad, home.data_ptr()))
            offset = place.stop

    def _view(self, flat: Tensor, shape: torch.Size) -> Tensor:
        """A piece of a flat buffer as a parameter of `shape`, weights in the buffer's order."""
        if len(shape) != 4:
            return flat.view(shape)
        stored = flat.view([shape[axis] for axis in self._axes])
        return stored.permute([self._axes.index(axis) for axis in range(4)])

    def _check_bindings(self) -> None:
        # Autograd adds into an existing .grad in place; this catches whoever sets it to None or moves the network.
        for index, (parameter, gradient, address) in enumerate(self._bound):
            if parameter.grad is not gradient or parameter.data_ptr() != address:
                raise InputError(f"{self.names[index]!r} or its gradient no longer lies in the optimiser's buffer; clear "
                                 "gradients with its zero_grad(), and make a new Adam after moving a network.")

    def _step_native(self) -> None:
        native.adam(
            [self.parameters[None]], [self.gradient[None]], [self.m[None]], [self.v[None]],
            steps=self._step, learning_rate=torch.tensor([self.learning_rate], dtype=torch.float64),
            beta1=self.betas[0], beta2=self.betas[1], eps=self.eps, pool=pool.get(),
            workspace=workspace.allocator(self.parameters),
        )

    def _step_torch(self) -> None:
        beta1, beta2 = self.betas
        self._step += 1
        step = self.step_count
        correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        self.m.lerp_(self.gradient, 1 - beta1)
        self.v.mul_(beta2).addcmul_(self.gradient, self.gradient, value=1 - beta2)
        denominator = self.v.sqrt().div_(correction2**0.5).add_(self.eps)
        self.parameters.addcdiv_(self.m, denominator, value=-self.learning_rate / correction1)
