"""From a model's scores to probabilities that mean what they say, and to decisions; both are parts of a trained model.

Shapes: n rows, K classes. Scores of a binary task are ``[n]`` probabilities of the event, of a multi-class one ``[n, K]``.
"""

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shoal.cluster.config import Config
from shoal.training.costs import NO_AMOUNTS, Amounts, Cells, Costs, Floats

Positive = Annotated[float, Field(gt=0)]

_TINY, _NEXT_TO_ONE = float(np.finfo(np.float64).tiny), 1.0 - float(np.finfo(np.float64).epsneg)


class Steps(Config):
    """A rising function of a score: linear between its points, constant beyond them."""

    x: Annotated[tuple[float, ...], Field(min_length=1)]
    y: Annotated[tuple[float, ...], Field(min_length=1)]


class Calibration(Config):
    """What is done to a model's scores, in this order; nothing by default.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML, section 4.2 (temperature);
    Zadrozny and Elkan (2002), Transforming classifier scores into accurate multiclass probability estimates, KDD (isotonic
    regression, one class against the rest, then divided by the sum).
    """

    class_weights: tuple[Positive, ...] = Field((), description="of the loss, one a class; divided out")
    cost_weights: Cells = Field(
        (),
        description="costs, actual class outside, by which rows weighed in the fit or were kept for it; divided out",
    )
    temperature: Positive | None = Field(None, description="logits are divided by it")
    isotonic: tuple[Steps, ...] = Field((), description="of the event, or one a class")

    @property
    def is_fitted(self) -> bool:
        """Whether some of it comes from rows that were held out."""
        return self.temperature is not None or bool(self.isotonic)

    @property
    def columns(self) -> tuple[str, ...]:
        """The cost columns that it needs of each row."""
        return Costs.of_cells(self.cost_weights).columns if self.cost_weights else ()

    def __call__(self, scores: Floats, amounts: Amounts = NO_AMOUNTS) -> Floats:
        """Return calibrated probabilities of the shape of `scores`; `amounts` are the rows' cost columns."""
        if self.class_weights:
            scores = divided_out(scores, np.array(self.class_weights))
        if self.cost_weights:
            scores = divided_out(scores, Costs.of_cells(self.cost_weights).weights(amounts))
        if self.temperature is not None:
            scores = tempered(scores, self.temperature)
        if not self.isotonic:
            return scores
        if scores.ndim == 1:
            return np.interp(scores, self.isotonic[0].x, self.isotonic[0].y)
        looked_up = [np.interp(scores[:, k], step.x, step.y) for k, step in enumerate(self.isotonic)]
        return _shares(np.stack(looked_up, axis=1))


class Decision(Config):
    """Which class is decided for a row."""

    threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="binary and multi-label: least probability of the event"
    )
    costs: Cells = Field(
        (),
        description="of deciding each class (inner) for rows of each class (outer), numbers or columns; binary: only where some "
        "are columns, and then in the place of the threshold",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The cost columns that it needs of each row."""
        return Costs.of_cells(self.costs).columns if self.costs else ()

    def thresholds(self, amounts: Amounts = NO_AMOUNTS) -> Floats:
        """Return the least probability of the event, of each row ``[n]`` or the same for all (binary)."""
        if not self.costs:
            return np.asarray(self.threshold)
        return Costs.of_cells(self.costs).thresholds(amounts)

    def classes(self, scores: Floats, amounts: Amounts = NO_AMOUNTS) -> NDArray[np.int64]:
        """Return the class ``[n]`` of each row: binary by the threshold, otherwise of lowest expected cost, or likeliest.

        Parameters
        ----------
        scores
            Probabilities, ``[n]`` or ``[n, K]``.
        amounts
            The rows' cost columns.
        """
        if scores.ndim == 1:
            return np.asarray(scores >= self.thresholds(amounts), dtype=np.int64)
        if self.costs:
            expected = Costs.of_cells(self.costs).expected(scores, amounts)
            return np.asarray(expected.argmin(axis=1), dtype=np.int64)
        return np.asarray(scores.argmax(axis=1), dtype=np.int64)


def divided_out(scores: Floats, weights: Floats) -> Floats:
    """Return the probabilities ``p / w``, divided by their sum, of scores that a loss with weights w made.

    Weighted cross-entropy is least at scores proportional to w times the probability of each class; ``weights`` are of the
    classes ``[K]``, or of the classes for each row ``[n, K]``.
    """
    if scores.ndim == 1:
        event, other = scores / weights[..., 1], (1.0 - scores) / weights[..., 0]
        return np.asarray(event / (event + other))
    return _shares(scores / weights)


def tempered(scores: Floats, temperature: float) -> Floats:
    """Return the probabilities whose logits are those of `scores`, divided by a temperature."""
    logits = logits_of(scores) / temperature
    if scores.ndim == 1:
        with np.errstate(over="ignore"):  # exp overflows to infinity, whose reciprocal is the right 0
            return np.asarray(1.0 / (1.0 + np.exp(-logits)))
    return _shares(np.exp(logits - logits.max(axis=1, keepdims=True)))


def logits_of(scores: Floats) -> Floats:
    """Return logits of the shape of `scores`; of several classes up to the same number for each class of a row.

    A probability of 1 is taken for the double next below it, since its logit is infinite.
    """
    if scores.ndim == 1:
        near = np.clip(scores, _TINY, _NEXT_TO_ONE)
        return np.asarray(np.log(near) - np.log1p(-near))
    return np.log(np.clip(scores, _TINY, None))


def _shares(values: Any) -> Floats:
    """Divide each row by its sum; rows of zeros become even."""
    total = values.sum(axis=1, keepdims=True)
    even = np.full_like(values, 1.0 / values.shape[1])
    return np.asarray(np.divide(values, total, out=even, where=total != 0))
