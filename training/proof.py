"""Proof that the workers train one model (contract 6); a run that fails it stops.

Agreement of parameter hashes alone proves nothing: with the reduction switched off the hashes of some strategies
still agree. So the first step's reduced gradient is compared with one gathered independently.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from shoal.cluster.errors import ContractError
from shoal.training.strategies.base import Fragment, Strategy

_TOLERANCE, _TOLERANCE_FP64 = 1e-4, 1e-9  # gradients are reduced in fp32 under every lower precision


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


def prove_gradient(
    strategy: Strategy, reduced: Mapping[str, Tensor | None], local: Mapping[str, Tensor], precision: str
) -> float:
    """Check the reduced gradient of every parameter against the sum of the workers' own.

    Parameters
    ----------
    strategy
        Carries the gathering, which is no reduction.
    reduced
        The gradients that a step would use, whole, by parameter name; None where there is none.
    local
        This worker's gradients of its share of the global loss, for the same names on every worker.
    precision
        Decides how much rounding may differ.

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
    for name, own in local.items():
        if not own.numel():
            continue
        true = torch.stack([g.double() for g in strategy.all_gather(own)]).sum(0)
        given = reduced.get(name)
        difference = float((true if given is None else given.double() - true).abs().max())
        largest = max(largest, float(true.abs().max()))
        if difference > worst or not math.isfinite(difference):
            worst, where = difference, name
    relative = strategy.maximum(worst / largest if largest else worst)
    allowed = _TOLERANCE_FP64 if precision == "fp64" else _TOLERANCE
    if math.isfinite(largest) and not relative <= allowed:
        raise ContractError(
            f"the workers' reduced gradient is not the gradient of the global batch: off by {relative:.2g} of its largest "
            f"entry{f' ({where})' if where else ''}, allowed {allowed:g}. Nothing was trained; a layer "
            "that draws at random by itself, or a reduction that is switched off, does this"
        )
    return relative


def weights_hash(weights: Mapping[str, Fragment]) -> str:
    """Return the SHA-256 of the parameters and buffers that every worker holds whole."""
    digest = hashlib.sha256()
    for name, fragment in weights.items():
        if fragment.start is None:
            digest.update(name.encode())
            flat = fragment.tensor.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def prove_one_model(strategy: Strategy, position: int) -> None:
    """Check that parameters and buffers are the same bits on every worker.

    Raises
    ------
    ContractError
        Naming the workers that differ from worker 0.
    """
    if strategy.world_size == 1:
        return
    gathered = strategy.gather_objects(weights_hash(strategy.weights()))
    different = [] if gathered is None else [r for r, h in enumerate(gathered) if h != gathered[0]]
    different = strategy.broadcast(different)
    if different:
        raise ContractError(
            f"after step {position} the models of workers {different} are not that of worker 0: the run stopped. "
            "A parameter that was frozen or thawed after the start, or a buffer that each worker updates by itself, does this"
        )
