"""How much more common rows are in the target than in the source, by a classifier that tells the domains apart.

Shape legend: n source rows, m target rows, F numbers a row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]
FOLDS = 5
MOST_ROWS = 200_000  # of each domain, that the classifier learns from
_STREAM = 71  # of the draws


def trees(categorical: list[int]) -> Any:
    """Return boosted trees, for raw columns; ``categorical`` are the numbers of those that hold codes."""
    return HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.1,
        early_stopping=False,
        categorical_features=categorical or None,
        random_state=0,
    )


def straight() -> Any:
    """Return a logistic regression of standardised numbers, for what a layer gives."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))


def density_ratio(
    source: NDArray[Any],
    target: NDArray[Any],
    *,
    classifier: Callable[[], Any] = straight,
    clip: float = 20.0,
    normalised: bool = True,
    seed: int = 0,
) -> Floats:
    """Return p_target(x) / p_source(x) at each source row, float64 ``[n]``, at most ``clip`` times the mean.

    Each row is judged by a classifier that did not learn from it: where that gives p for the target, it is (n / m) p / (1 - p)
    (Bickel, Brückner and Scheffer 2009, "Discriminative learning under covariate shift", equation 8). The draw of the folds is of
    the seed and the rows' places.

    Parameters
    ----------
    source, target
        ``[n, F]`` and ``[m, F]``.
    classifier
        Makes one of scikit-learn's, with `predict_proba`.
    normalised
        Whether the mean is made 1, which the true ratio has in expectation.
    """
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_STREAM,))))
    folds = FOLDS if min(len(source), len(target)) >= 2 * FOLDS else 2
    of_source, of_target = (draws.permutation(len(rows)) % folds for rows in (source, target))
    ratio = np.empty(len(source))
    for fold in range(folds):
        mine, theirs = (np.flatnonzero(of != fold)[:MOST_ROWS] for of in (of_source, of_target))
        rows = np.concatenate([source[mine], target[theirs]])
        domain = np.repeat([0, 1], [len(mine), len(theirs)])
        model = classifier().fit(rows, domain)
        held = of_source == fold
        p = np.clip(model.predict_proba(source[held])[:, 1], 1e-6, 1 - 1e-6)
        ratio[held] = len(mine) / len(theirs) * p / (1 - p)
    ratio = np.minimum(ratio, clip * ratio.mean())
    return np.asarray(ratio / ratio.mean() if normalised else ratio)
