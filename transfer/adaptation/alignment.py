"""The terms that make two domains alike: plain functions of tensors.

Shape legend: B source rows, C target rows, F numbers a row, K classes. Weights ``[B]`` of source rows need no particular sum.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softmax


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength  # type: ignore[attr-defined]  # a Python float: bf16 has too few steps
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None  # type: ignore[attr-defined]


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``-strength`` (Ganin et al. 2016, equations 16 and 17)."""
    found: Tensor = _Reversed.apply(x, strength)  # type: ignore[no-untyped-call]
    return found


def discriminator(width: int, hidden: tuple[int, ...], sources: int = 1) -> nn.Sequential:
    """Return a network of ``[n, width]`` that tells domains apart.

    It gives one logit a row, that it is the target's; or of several sources one for each of them, and the target's behind.
    """
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1 if sources == 1 else sources + 1))


def domain_losses(logits: Tensor, domain: Tensor) -> Tensor:
    """Return the cross-entropy ``[n]`` of a discriminator's logits ``[n, 1]`` or ``[n, D + 1]`` on rows of domains ``[n]``."""
    if logits.shape[1] == 1:
        return binary_cross_entropy_with_logits(logits[:, 0], domain.to(logits.dtype), reduction="none")
    return cross_entropy(logits, domain, reduction="none")


def class_probabilities(logits: Tensor) -> Tensor:
    """Return ``[n, K]`` of logits ``[n, K]``, or ``[n, 2]`` of ``[n, 1]``, the event's."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return softmax(logits, dim=1)


def conditioned(features: Tensor, probabilities: Tensor) -> Tensor:
    """Return the outer product of each row's outputs and class probabilities, ``[n, F K]`` (Long et al. 2018, equation 5)."""
    return (features[:, :, None] * probabilities[:, None, :]).flatten(1)


def certainty(probabilities: Tensor) -> Tensor:
    """Return 1 + exp(-H) of each row's class probabilities, ``[n]`` (Long et al. 2018, equation 8)."""
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1)
    return 1.0 + torch.exp(-entropy)


def coral(source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the squared Frobenius distance of the covariances, over 4 F^2 (Sun and Saenko 2016, equations 1 to 3)."""
    distance = _covariance(source, weights) - _covariance(target, torch.ones_like(target[:, 0]))
    return distance.square().sum() / (4 * source.shape[1] ** 2)


def _covariance(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the unbiased covariance ``[F, F]``; of weighted rows with n (w / sum w) for counts."""
    shares = weights / weights.sum()
    centred = rows - (shares[:, None] * rows).sum(0)
    n = len(rows)
    return (centred * shares[:, None]).T @ centred * (n / max(1, n - 1))


def squared_mmd(source: Tensor, target: Tensor, weights: Tensor, kernels: int) -> Tensor:
    """Return the squared maximum mean discrepancy, with the mean of some Gaussian kernels.

    The kernels are exp(-d^2 / s), where s is the mean of d^2 over all pairs times a power of two, from 2^-(n // 2) on; s has no
    gradient. Gretton et al. (2012), equation 5 (the biased estimate); kernels as in Long et al. (2015), section 4.1.
    """
    rows = torch.cat([source, target])
    squares = _squares(rows)
    n = len(rows)
    width = squares.detach().sum() / max(1, n * (n - 1))
    width = torch.where(width > 0, width, torch.ones_like(width))
    kernel = torch.stack(
        [torch.exp(-squares / (width * 2.0**k)) for k in range(-(kernels // 2), kernels - kernels // 2)]
    ).mean(0)
    signed = torch.cat([weights / weights.sum(), -torch.full_like(target[:, 0], 1.0 / len(target))])
    return signed @ kernel @ signed


def _squares(rows: Tensor) -> Tensor:
    """Return squared distances ``[n, n]``, without the root, whose gradient has no value at 0."""
    norms = rows.square().sum(1)
    return (norms[:, None] + norms[None, :] - 2 * rows @ rows.T).clamp_min(0.0)


def class_confusion(logits: Tensor, temperature: float) -> Tensor:
    """Return how much the classes are confused on rows without labels ``[C, K]`` (Jin et al. 2020, equations 2 to 6)."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    probabilities = softmax(logits / temperature, dim=1)
    sure = certainty(probabilities).detach()
    sure = sure * len(sure) / sure.sum()
    confusion = (probabilities * sure[:, None]).T @ probabilities
    confusion = confusion / confusion.sum(1, keepdim=True)
    return (confusion.sum() - confusion.trace()) / len(confusion)
