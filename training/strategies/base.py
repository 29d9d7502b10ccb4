"""What the loop asks of a strategy, and the strategy of one worker.

A strategy knows how gradients become one over the workers and where weights and optimiser state lie; the loop does
not. Collectives go through it too, so that the loop runs without a process group when there is one worker.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from shoal.training.config import SearchConfig, TrainingConfig
from shoal.training.optimizers.build import build_optimizer
from shoal.training.optimizers.parameters import parameter_groups
from shoal.training.optimizers.penalties import add_l2, add_to_gradients, shrink
from shoal.training.optimizers.searching import Closure, Searched, Searching
from shoal.training.users_code import users

_LIST = "[]"  # ends the name of an optimiser's state that is a list of tensors

Read = Callable[[str, int, int | None], Tensor]
"""(name, start, stop) -> elements ``start`` to ``stop - 1`` of a tensor; all of it, in its shape, where stop is None."""


@dataclass(frozen=True)
class Fragment:
    """What one worker holds of a tensor.

    Attributes
    ----------
    tensor
        A view of the live values: the whole tensor in its shape, or ``[stop - start]`` of it laid flat.
    start
        Where it begins in the flat tensor; None for a whole one, which every worker holds alike.
    """

    tensor: Tensor
    start: int | None = None

    @property
    def bounds(self) -> tuple[int, int | None]:
        """First element and the one after the last, as `Read` takes them."""
        return (0, None) if self.start is None else (self.start, self.start + self.tensor.numel())


class Strategy:
    """One worker: every operation over "all workers" is the identity."""

    name = "single"
    lockstep = False  # whether all workers must make the same number of passes through the model

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return 0

    @property
    def world_size(self) -> int:
        """W."""
        return 1

    def wrap(self, module: nn.Module, config: TrainingConfig, unused_parameters: bool) -> nn.Module:  # noqa: ARG002
        """Build the optimiser and return the module whose forward the loop calls.

        Parameters
        ----------
        module
            On this worker's device, the same weights on every worker.
        config
            Optimiser, precision, clipping.
        unused_parameters
            Whether a step may leave a parameter without a gradient.
        """
        self.module = module
        self.optimizer = build_optimizer(config, module)
        if isinstance(config.optimizer, SearchConfig):
            self._groups = parameter_groups(module, config)
        else:
            add_to_gradients(self.optimizer, config.l1)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.clip_norm = config.clip_norm
        self.shrinks = config.l1 is not None and config.l1.proximal is not None
        return module

    def accumulate(self, module: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002
        """Within the block, backward passes add to the local gradient; the first one after it reduces."""
        return nullcontext()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, this worker's share of the global loss, to the parameters."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def reduced_gradients(self) -> dict[str, Tensor | None]:
        """Return each parameter's gradient of the global loss, whole, on every worker; between backward and step."""
        scale = self.scaler.get_scale()
        return {
            n: p.grad if p.grad is None or scale == 1.0 else p.grad / scale
            for n, p in self.module.named_parameters()
            if p.requires_grad
        }

    def gradient_norm(self) -> float:
        """Return the 2-norm of the global gradient, the same on every worker; called once before each step."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._optimized() if p.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        return float(self.norm)

    def step(self) -> bool:
        """Clip where asked and take an optimiser step; return whether loss scaling let it be taken."""
        if self.clip_norm is not None:
            parameters = [p for p in self._optimized() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, self.norm)
        before = self.scaler.get_scale()
        with users("training.optimizer.import"):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        taken: bool = self.scaler.get_scale() >= before
        if taken and self.shrinks:
            shrink(self.optimizer)
        return taken

    @property
    def rate(self) -> float:
        """The learning rate of the first group of parameters, as it is now."""
        return float(self._groups_of_optimizer()[0]["lr"])

    def set_rate(self, factor: float, momentum: float | None = None) -> None:
        """Multiply each group's learning rate for the next step; set the momentum, or the first of the betas, where given."""
        for group, rate in zip(self._groups_of_optimizer(), self.rates, strict=True):
            group["lr"] = rate * factor
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None and group.get("momentum"):
                group["momentum"] = momentum

    def _groups_of_optimizer(self) -> list[dict[str, Any]]:
        """Return the groups of the torch optimiser that takes the steps."""
        return self.optimizer.param_groups

    def search(self, closure: Closure) -> Searched:
        """Take a step of an optimiser that searches along lines.

        Parameters
        ----------
        closure
            Forgets gradients, adds that of the global batch by `backward`, and returns its loss, the same on every worker.
        """
        found = cast(Searching, self.optimizer)
        found.step(lambda: closure() + add_l2(self._groups))
        return found.searched

    def _optimized(self) -> list[Tensor]:
        """Return the tensors whose gradients a step takes."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def weights(self) -> dict[str, Fragment]:
        """Return what this worker holds of parameters and buffers, by name; tied ones once, buffers saved or not."""
        named = chain(self.module.named_parameters(), self.module.named_buffers())
        return {name: Fragment(tensor.detach()) for name, tensor in named}

    def weights_changed(self) -> None:
        """Hear that other values were written into `weights`."""

    def unwrap(self) -> None:
        """Give the module back as it was before `wrap`, whole and with the trained weights, at the end of a fit."""

    def optimizer_state(self) -> tuple[dict[str, Fragment], dict[str, Any]]:
        """Return what this worker holds of the optimiser's state: tensors, and plain values."""
        state, tensors, plain = self.optimizer.state_dict(), {}, {}
        for i, own in state["state"].items():
            for key, value in own.items():
                if isinstance(value, Tensor):
                    tensors[f"{i}/{key}"] = Fragment(value)
                elif isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value):
                    tensors[f"{i}/{key}{_LIST}"] = Fragment(torch.stack(value))
                elif isinstance(value, int | float):
                    plain[f"{i}/{key}"] = value
        return tensors, {"groups": state["param_groups"], "scaler": self.scaler.state_dict(), "plain": plain}

    def load_optimizer_state(self, names: list[str], read: Read, facts: dict[str, Any]) -> None:
        """Take the optimiser's state from a checkpoint.

        Parameters
        ----------
        names
            Of all tensors that any worker wrote.
        read
            Returns them.
        facts
            The plain values.
        """
        state: dict[int, dict[str, Any]] = {}
        for name in names:
            index, _, key = name.partition("/")
            value = read(name, 0, None)
            state.setdefault(int(index), {})[key.removesuffix(_LIST)] = (
                [v.clone() for v in value] if key.endswith(_LIST) else value
            )
        for name, number in facts["plain"].items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = number
        self.optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
        for i, p in enumerate(self._optimized()):
            own = self.optimizer.state[p]
            for key, value in state.get(i, {}).items():
                # torch gives all but the step count the parameter's type; NAdam's products would round otherwise.
                if isinstance(value, Tensor) and own[key].dtype != value.dtype:
                    own[key] = value.to(own[key].device, copy=True)
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])

    def communication_seconds(self) -> float:
        """Return how long this worker has waited for gradients to become one, as far as it is measured."""
        return 0.0

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over workers."""
        return values

    def maximum(self, value: float) -> float:
        """Return the largest of the workers' values."""
        return value

    def all_gather(self, values: Tensor) -> list[Tensor]:
        """Return each worker's tensor of the same shape, on every worker."""
        return [values]

    def gather_objects(self, value: Any) -> list[Any] | None:
        """Return every worker's value on rank 0, None elsewhere."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every worker."""
        return value
