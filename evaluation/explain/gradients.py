"""Attributions by the gradients of a network, computed by captum and added up over each raw column.

Shape legend: n rows, B background rows, E encoded features, M columns, K outputs.

References
----------
Sundararajan, Taly and Yan (2017), Axiomatic attribution for deep networks, ICML, equation 1 (integrated gradients); Simonyan,
Vedaldi and Zisserman (2014), Deep inside convolutional networks, section 3 (saliency); Erion et al. (2021), Improving performance
of deep learning models with axiomatic attribution priors and expected gradients, equation 3 (gradient SHAP); Shrikumar, Greenside
and Kundaje (2017), Learning important features through propagating activation differences, ICML (DeepLIFT).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal.evaluation.explain.shapley import Attributions

METHODS = ("integrated_gradients", "gradient_shap", "deep_lift", "saliency")
_STEPS, _DRAWS = 64, 64


@dataclass(frozen=True)
class Differentiable:
    """A network behind its encoder.

    Parameters
    ----------
    network
        Encoded features ``[n, E]`` to logits ``[n, K]``.
    owner
        int64 ``[E]``: which raw column a feature belongs to.
    """

    network: nn.Module
    owner: NDArray[np.int64]


def attributions(
    method: str,
    subject: Differentiable,
    encoded: Tensor,
    background: Tensor,
    outputs: Sequence[int],
    seeds: Sequence[int] = (),
) -> Attributions:
    """Attribute logits to raw columns.

    Parameters
    ----------
    method
        Of `METHODS`. ``integrated_gradients`` and ``deep_lift`` start from the mean encoded background row, ``gradient_shap``
        from random ones; ``saliency`` is the size of the gradient, which adds up to nothing.
    encoded, background
        ``[n, E]`` and ``[B, E]``.
    outputs
        Which of the logits.
    seeds
        One a row, for ``gradient_shap``.

    Returns
    -------
    Attributions
        In logits. `additivity` is the completeness error; NaN for ``saliency``. `sampling` is that of the draws of
        ``gradient_shap``, over two halves.
    """
    network, count = subject.network.eval(), int(subject.owner.max(initial=-1)) + 1
    start = background.mean(dim=0, keepdim=True)
    with torch.no_grad():
        answers = network(encoded).double().cpu().numpy()[:, list(outputs)]
        base = network(start).double().cpu().numpy()[:, list(outputs)]
        if method == "gradient_shap":
            base = network(background).double().mean(dim=0, keepdim=True).cpu().numpy()[:, list(outputs)]
    values, errors = [], []
    for output in outputs:
        if method == "gradient_shap":
            halves = _gradient_shap(network, encoded, background, output, seeds)
            first, second = (_summed(half, subject.owner, count) for half in halves)
            values.append((first + second) / 2)
            errors.append(np.abs(first - second) / 2)
            continue
        found = _attribute(method, network, encoded, start, output)
        values.append(_summed(found, subject.owner, count))
    if method == "saliency":
        base = np.full_like(answers, np.nan)
    return Attributions(
        np.stack(values, axis=2),
        np.repeat(base, len(answers), axis=0) if len(base) == 1 else base,
        answers,
        np.stack(errors, axis=2) if errors else None,
    )


def _attribute(method: str, network: nn.Module, encoded: Tensor, start: Tensor, output: int) -> Tensor:
    from captum.attr import DeepLift, IntegratedGradients, Saliency

    found: Tensor
    if method == "saliency":
        found = Saliency(network).attribute(encoded.clone().requires_grad_(), target=output, abs=True)
    elif method == "deep_lift":
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it sets hooks
            found = DeepLift(network).attribute(encoded, baselines=start, target=output)
    else:
        most = max(len(encoded), 4096)  # rows times steps at once
        found = IntegratedGradients(network).attribute(
            encoded, baselines=start, target=output, n_steps=_STEPS, internal_batch_size=most
        )
    return found


def _gradient_shap(
    network: nn.Module, encoded: Tensor, background: Tensor, output: int, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Attribute row by row, with draws of the row's own; captum takes them from the process's random states."""
    from captum.attr import GradientShap

    explainer, before = GradientShap(network), np.random.get_state()
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    try:
        with torch.random.fork_rng(devices=[]):
            for row, seed in zip(torch.split(encoded, 1), seeds, strict=True):
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)
                for half in halves:
                    half.append(
                        explainer.attribute(
                            row, baselines=background, target=output, n_samples=_DRAWS, stdevs=0.0
                        )
                    )
    finally:
        np.random.set_state(before)
    return torch.cat(halves[0]), torch.cat(halves[1])


def _summed(found: Tensor, owner: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Add up attributions ``[n, E]`` over each column, to ``[n, M]``."""
    total = np.zeros((len(found), count))
    np.add.at(total.T, owner, found.detach().double().cpu().numpy().T)
    return total
