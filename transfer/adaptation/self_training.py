"""Self-training: the model's sure answers on target rows are learned as if they were labels.

Shape legend: N target rows, K classes; c target rows of this worker in a step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from shoal.training.batches import Dataset
from shoal.training.models import Model
from shoal.training.scores import Judge
from shoal.training.strategies.base import Strategy
from shoal.training.two_domains import Sides
from shoal.transfer.adaptation.config import SelfTrainingConfig
from shoal.transfer.adaptation.methods import Method
from shoal.transfer.adaptation.reading import by_class

NONE = -1  # the label of a row that has none
_DIGITS = (
    6  # of probabilities that are compared: rounding that depends on the number of workers decides nothing
)


def sure_labels(
    probabilities: NDArray[np.float64], share: float, confidence: float, class_balanced: bool
) -> NDArray[np.int64]:
    """Return the class of each row of which the model is sure, -1 for the others; int64 ``[N]``.

    Parameters
    ----------
    probabilities
        ``[N, K]``.
    share
        Of the answers, the surest ones, that become labels: of each class's, or of all. At a tie at the end none of those does.
    confidence
        Least probability of a label.
    class_balanced
        Whether the share is of each class's answers (Zou et al. 2018, "Unsupervised domain adaptation for semantic segmentation
        via class-balanced self-training", equations 4 and 5 and algorithm 2).
    """
    rounded = np.round(probabilities, _DIGITS)
    answer, sure = rounded.argmax(1), rounded.max(1)
    labels = np.full(len(sure), NONE, np.int64)
    groups = (
        [answer == k for k in range(probabilities.shape[1])] if class_balanced else [np.ones(len(sure), bool)]
    )
    for group in groups:
        own = np.sort(sure[group])[::-1]
        n = round(share * len(own))
        if not n:
            continue
        least = own[n - 1]
        if n < len(own) and own[n] == least:  # a tie: which of them would be a question of order
            above = own[own > least]
            least = above[-1] if len(above) else np.inf
            if least == np.inf and share == 1.0:
                least = own[-1]
        chosen = group & (sure >= max(least, confidence))
        labels[chosen] = answer[chosen]
    return labels


class SelfTraining(Method):
    """Gives labels to target rows in rounds, and adds their cross-entropy to the objective."""

    def __init__(self, model: Model, unlabelled: Dataset, config: SelfTrainingConfig, epochs: int) -> None:
        super().__init__(model, unlabelled, None, config.batch_norm)
        self.config, self.epochs, self.rows = config, epochs, unlabelled
        self.first = min(epochs - 1, round(config.start * epochs))
        self.labels = torch.full((sum(unlabelled.shard_rows("train")),), NONE, dtype=torch.int64)
        self.given: list[int] = []  # labels of each round
        self.teacher: dict[str, Tensor] = {}

    def begin(self, epoch: int, model: Model, strategy: Strategy) -> None:
        """Give labels anew where a round begins."""
        rounds = epoch - self.first
        if rounds < 0 or rounds % self.config.every:
            return
        first, last = self.config.shares
        done = rounds / max(1, self.epochs - 1 - self.first)
        share = first + (last - first) * done
        model.eval()
        with self._teaching():
            judged = Judge(self.rows, strategy, self.rows.schema.target)(model, "train")
        labels = None
        if judged is not None:
            scores = by_class(judged.score)
            labels = sure_labels(scores, share, self.config.confidence, self.config.class_balanced)
        self.labels = torch.from_numpy(strategy.broadcast(labels))
        self.given.append(int((self.labels >= 0).sum()))

    def share(self, outputs: tuple[Tensor, ...], sides: Sides) -> Tensor:
        """Return this worker's share of the cross-entropy of labels that were given, over all target rows of the step."""
        logits = outputs[0][len(sides.labels) :]
        labels = self.labels[sides.rows].to(logits.device)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        losses = cross_entropy(logits, labels.clamp_min(0), reduction="none")
        return self.config.weight * (losses * (labels >= 0)).sum() / sides.n_target

    def stepped(self, position: int) -> None:
        """Let the teacher follow (Tarvainen and Valpola 2017, section 2), faster at the start."""
        if self.config.teacher is None:
            return
        decay = min(self.config.teacher, position / (position + 1.0))
        with torch.no_grad():
            for name, value in self._values():
                if name not in self.teacher or not value.is_floating_point():
                    self.teacher[name] = value.detach().clone()
                else:
                    self.teacher[name].lerp_(value.detach(), 1.0 - decay)

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        return chain(self.model.named_parameters(), self.model.named_buffers())

    @contextmanager
    def _teaching(self) -> Iterator[None]:
        """Let the model have the teacher's weights and buffers within the block."""
        if not self.teacher:
            yield
            return
        with torch.no_grad():
            own = {name: value.detach().clone() for name, value in self._values()}
            for name, value in self._values():
                value.copy_(self.teacher[name])
            try:
                yield
            finally:
                for name, value in self._values():
                    value.copy_(own[name])

    def state(self) -> dict[str, Tensor]:
        """Return the labels that were given, and the teacher."""
        given = torch.tensor(self.given, dtype=torch.int64)
        return {"labels": self.labels, "given": given} | {f"teacher/{n}": t for n, t in self.teacher.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        self.labels, self.given = state["labels"].clone(), state["given"].tolist()
        device = next(self.model.parameters()).device
        self.teacher = {
            n.removeprefix("teacher/"): t.to(device, copy=True)
            for n, t in state.items()
            if n.startswith("teacher/")
        }

    def finish(self) -> tuple[str, ...]:
        """Say how many labels were given."""
        said: tuple[str, ...] = ()
        if self.given:
            said = (
                f"self-training: {self.given[0]:,} of {len(self.labels):,} target rows had own labels in the first "
                f"round, {self.given[-1]:,} in the last of {len(self.given)}",
            )
        return (*super().finish(), *said)
