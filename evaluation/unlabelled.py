"""How right a model's decisions may be on rows without labels: an estimate, from how sure it is of them.

Shapes: m held-out rows with labels, n rows without.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.evaluation.tallies import Array, Floats

_STREAM = 83  # of the draws
ASSUMES = (
    "an estimate, not a measurement: it assumes that these rows differ from the held-out ones in how common each kind of row is, "
    "and not in which label a row of a kind has; new classes and changed meanings go unseen"
)


@dataclass(frozen=True)
class Guess:
    """An estimated accuracy with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimated:
    """What is estimated of rows without labels.

    Attributes
    ----------
    by_threshold, by_difference
        By average thresholded confidence, and by the difference of confidences.
    held_out, held_out_rows
        Accuracy of the held-out rows, and m.
    rows
        n.
    """

    by_threshold: Guess
    by_difference: Guess
    held_out: float
    held_out_rows: int
    rows: int


def confidences(scores: Floats, decided: Array) -> Floats:
    """Return the probability of the class that was decided ``[n]``, from scores ``[n]`` of the event or ``[n, K]``."""
    if scores.ndim == 1:
        return np.where(decided == 1, scores, 1.0 - scores)
    return np.asarray(scores[np.arange(len(scores)), decided])


def estimate_accuracy(
    right: NDArray[np.bool_],
    known: Floats,
    new: Floats,
    *,
    confidence: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Estimated:
    """Estimate which share of decisions is right.

    Parameters
    ----------
    right
        Whether each held-out decision is, ``[m]``.
    known, new
        How sure the model is of its held-out decisions ``[m]`` and of those to be judged ``[n]``.
    confidence, replicates, seed
        Of the percentile bootstrap over both.

    References
    ----------
    Average thresholded confidence: Garg et al. (2022), "Leveraging unlabeled data to predict out-of-distribution performance",
    equations 1 and 2: a threshold below which as many held-out rows lie as are wrong; the share of rows above it. Difference of
    confidences: Guillory et al. (2021), "Predicting with confidence on unseen distributions", section 3.
    """
    m, n = len(known), len(new)
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_STREAM,))))
    ordered = np.sort(new)

    def above(threshold: float) -> float:
        return float((n - np.searchsorted(ordered, threshold, side="left")) / n)

    by_threshold, by_difference = [], []
    spread = float(new.std()) / np.sqrt(n)
    for _ in range(replicates):
        own = draws.integers(m, size=m)
        share = above(_threshold(right[own], known[own]))
        by_threshold.append(draws.binomial(n, share) / n)
        shift = float(new.mean()) + spread * draws.standard_normal() - float(known[own].mean())
        by_difference.append(float(right[own].mean()) + shift)
    ends = 50 * (1 - confidence), 50 * (1 + confidence)

    def guess(value: float, drawn: list[float]) -> Guess:
        low, high = np.clip(np.percentile(drawn, ends), 0, 1)
        return Guess(float(np.clip(value, 0, 1)), float(low), float(high))

    held_out = float(right.mean())
    return Estimated(
        guess(above(_threshold(right, known)), by_threshold),
        guess(held_out + float(new.mean() - known.mean()), by_difference),
        held_out,
        m,
        n,
    )


def _threshold(right: NDArray[np.bool_], known: Floats) -> float:
    """Return the confidence below which as many held-out rows lie as are wrong."""
    wrong = int((~right).sum())
    return float(np.partition(known, wrong)[wrong]) if wrong < len(known) else np.inf
