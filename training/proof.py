"""Proof that the workers train one model (contract 6); a run that fails it stops.

Agreement of parameter hashes alone proves nothing: with the reduction switched off the hashes of some strategies
still agree. So the first step's reduced gradient is compared with one gathered independently.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from shoal.cluster.errors import ContractError
from shoal.training.strategies.base import Strategy

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def prove_slots(strategy: Strategy, position: Tensor, low: int, high: int) -> None:
    """Check that the workers' positions are disjoint and cover ``low`` to ``high - 1``.

    Raises
    ------
    ContractError
        Naming how many positions were read twice or not at all.
    """
    gathered = strategy.gather_objects(position.numpy())
    problem = None
    if gathered is not None:
        counts = np.bincount(np.concatenate(gathered) - low, minlength=high - low)
        if len(counts) != high - low or (counts != 1).any():
            problem = (
                f"workers do not share a batch rightly: of its {high - low} rows {int((counts > 1).sum())} were read "
                f"twice and {int((counts[: high - low] == 0).sum())} not at all"
            )
    problem = strategy.broadcast(problem)
    if problem:
        raise ContractError(problem)


def prove_gradient(strategy: Strategy, module: nn.Module, local: dict[str, Tensor]) -> float:
    """Check the reduced gradient of every parameter against the sum of the workers' own.

    Parameters
    ----------
    strategy
        Carries the gathering, which is no reduction.
    module
        Holds the reduced gradients, on every worker.
    local
        This worker's gradient of its share of the global loss, by parameter name.

    Returns
    -------
    float
        Largest difference over all workers, as a share of the largest gradient.

    Raises
    ------
    ContractError
        If the difference is above what the float type explains.
    """
    worst, where, largest = 0.0, "", 0.0
    dtype = torch.float64
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        own = local.get(name)
        own = torch.zeros_like(parameter) if own is None else own
        true = torch.stack([g.double() for g in strategy.all_gather(own)]).sum(0)
        reduced = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        difference = float((reduced.double() - true).abs().max()) if true.numel() else 0.0
        largest = max(largest, float(true.abs().max()) if true.numel() else 0.0)
        if difference > worst:
            worst, where = difference, name
        dtype = parameter.dtype
    relative = strategy.maximum(worst / largest if largest else worst)
    if not relative <= _TOLERANCE[dtype]:
        raise ContractError(
            f"the workers' reduced gradient is not the gradient of the global batch: off by {relative:.2g} of its largest "
            f"entry{f' ({where})' if where else ''}, allowed {_TOLERANCE[dtype]:g}. Nothing was trained; a layer "
            "that draws at random by itself, or a reduction that is switched off, does this"
        )
    return relative


def model_hash(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def prove_one_model(strategy: Strategy, module: nn.Module, epoch: int) -> None:
    """Check that parameters and buffers are the same bits on every worker.

    Raises
    ------
    ContractError
        Naming the workers that differ from worker 0.
    """
    if strategy.world_size == 1:
        return
    gathered = strategy.gather_objects(model_hash(module))
    different = [] if gathered is None else [r for r, h in enumerate(gathered) if h != gathered[0]]
    different = strategy.broadcast(different)
    if different:
        raise ContractError(
            f"after epoch {epoch + 1} the models of workers {different} are not that of worker 0: the run stopped. "
            "A parameter that was frozen or thawed after the start, or a buffer that each worker updates by itself, does this"
        )
