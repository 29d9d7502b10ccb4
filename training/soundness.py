"""Whether what a fit left can be used: weights and predictions that are numbers."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from shoal.cluster.components import Choice
from shoal.cluster.errors import DivergedError
from shoal.cluster.sharding.names import plural
from shoal.training.config import OPTIMIZERS, TrainingConfig
from shoal.training.scores import Scores


def require_finite(
    model: nn.Module, scores: Mapping[str, Scores], config: TrainingConfig, skipped: int, steps: int
) -> None:
    """Refuse a fit whose weights or predictions are no finite numbers.

    Parameters
    ----------
    model
        With the weights that would be kept.
    scores
        Predictions ``[n]`` or ``[n, K]`` by part.
    skipped, steps
        How many steps were left out, of how many.

    Raises
    ------
    DivergedError
        With what is not finite, how many steps were left out, and what to change.
    """
    found = []
    for part, values in scores.items():
        wrong = np.count_nonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if wrong:
            found.append(f"{wrong:,} of {plural(len(values), f'{part} prediction')}")
    if not found:
        names = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
        if not names:
            return
        found = [f"the weights {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"]
    left_out = f"; {skipped:,} of {plural(steps, 'step')} had been left out" if skipped else ""
    first = ", or set training.non_finite: stop to see the rows of the first such step" if skipped else ""
    raise DivergedError(
        f"the fit failed: {' and '.join(found)} are no finite numbers{left_out}. Nothing of it is kept: {slower(config)}{first}"
    )


def slower(config: TrainingConfig) -> str:
    """Say what keeps the steps of a fit small."""
    name = Choice(OPTIMIZERS).name_of(config.optimizer)
    return f"lower training.optimizer.{name}.learning_rate or set training.clip_norm"
