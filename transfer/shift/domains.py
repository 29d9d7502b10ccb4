"""Whether a classifier can tell two domains apart, and how well: its AUC on rows that it was not fitted to.

An AUC of .5 means that it cannot, 1 that no row of one domain looks like one of the other. What it does not see it does not
report: an AUC of .5 is evidence about this classifier and this many rows.

Shapes: n_s source rows, n_t target rows, n of both; D numbers, C categories.

References
----------
Lopez-Paz and Oquab (2017), "Revisiting classifier two-sample tests". Intervals: DeLong, DeLong and Clarke-Pearson (1988),
Biometrics 44, equation 3, by midranks (Sun and Xu 2014, IEEE Signal Processing Letters 21), fold by fold, on the
scale of logits.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from shoal.cluster.errors import DataError
from shoal.cluster.sharding.names import plural
from shoal.cluster.sharding.prepare import Prepared
from shoal.transfer.content import Ints, content_keys, draw

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Kind = Literal["trees", "linear"]

FEWEST = 20  # rows of a domain, for an AUC in each fold that means anything
LIMIT = 5_000  # rows of a domain that are looked at
CODES = (
    254  # histograms of trees have 255 bins; codes are in the order of frequency, so the rarest are pooled
)


@dataclass(frozen=True)
class Separation:
    """How well two domains are told apart.

    Attributes
    ----------
    auc, low, high
        Mean over the folds of the area under the ROC curve, with its interval.
    source_rows, target_rows
        That were looked at.
    in_target, scores
        Whether each of these is of the target, and its cross-fitted score ``[n]``, for curves. Scores of different folds are of
        different classifiers.
    """

    auc: float
    low: float
    high: float
    source_rows: int
    target_rows: int
    in_target: Bools
    scores: Floats

    @property
    def seen(self) -> bool:
        """Whether the interval is above .5."""
        return self.low > 0.5

    def hardly(self, whole: "Separation") -> bool:
        """Whether of another separation less than a tenth is left, or nothing is seen."""
        return not self.seen or self.auc - 0.5 < 0.1 * (whole.auc - 0.5)


@dataclass(frozen=True)
class Pair:
    """Rows of both domains, source first, in an order that depends on their content and the seed alone.

    Attributes
    ----------
    numeric, categorical
        As in `Prepared`: float32 ``[n, D]`` and int32 ``[n, C]``.
    in_target
        ``[n]``.
    fold
        int64 ``[n]``, stratified by domain.
    """

    numeric: NDArray[np.float32]
    categorical: NDArray[np.int32]
    in_target: Bools
    fold: Ints


def pair(
    source: Prepared, target: Prepared, *, limit: int | None = LIMIT, n_folds: int = 5, seed: int = 0
) -> Pair:
    """Put at most `limit` rows of each domain together.

    Parameters
    ----------
    source, target
        Prepared rows of both domains, by one schema.
    limit, seed
        Rows are drawn by a hash of their content and the seed: the same ones for any order of the rows.

    Raises
    ------
    DataError
        If a domain has fewer than 20 rows, or there is no column.
    """
    numeric, categorical, sizes = [], [], []
    for name, rows in (("source", source), ("target", target)):
        if len(rows.numeric) < FEWEST:
            raise DataError(
                f"the {name} has {plural(len(rows.numeric), 'row')}; to compare domains, each needs at least {FEWEST}"
            )
        chosen = draw(content_keys(rows.numeric, rows.categorical, seed=seed), limit)
        numeric.append(rows.numeric[chosen])
        categorical.append(rows.categorical[chosen])
        sizes.append(len(chosen))
    if source.numeric.shape[1] + source.categorical.shape[1] == 0:
        raise DataError("domains without columns cannot be compared; give at least one feature column")
    return Pair(
        np.concatenate(numeric),
        np.concatenate(categorical),
        np.repeat([False, True], sizes),
        np.concatenate([np.arange(size) % n_folds for size in sizes]),
    )


def separate(rows: Pair, kind: Kind = "trees", *, confidence: float = 0.95) -> Separation:
    """Fit a classifier of the domain to all folds but one, and judge it on that one, for each.

    Parameters
    ----------
    kind
        ``trees`` is scikit-learn's histogram gradient boosting, ``linear`` a logistic regression.
    """
    x = np.concatenate([rows.numeric, np.minimum(rows.categorical, CODES - 1)], axis=1, dtype=np.float64)
    # Trees cannot bin a column without values, which a fold might be left with.
    x[:, np.isfinite(x).sum(axis=0) < FEWEST] = 0
    width = rows.numeric.shape[1]
    scores = cross_fit(x, rows.in_target, rows.fold, lambda: classifier(kind, width, x.shape[1]))
    return judge(rows.in_target, scores, rows.fold, confidence)


def cross_fit(x: NDArray[Any], in_target: Bools, fold: Ints, make: Callable[[], Any]) -> Floats:
    """Score each row by a classifier of the domain that was fitted to the other folds.

    Returns
    -------
    float64 ``[n]``
        Log odds of the target.
    """
    scores = np.zeros(len(x))
    with threadpool_limits(1), warnings.catch_warnings():  # the same sums on any machine
        warnings.simplefilter("ignore", ConvergenceWarning)  # what it has learned by then is judged
        warnings.filterwarnings(
            "ignore", message="Found unknown categories"
        )  # of this fold alone: as rare ones
        for k in np.unique(fold):
            held = fold == k
            model = make().fit(x[~held], in_target[~held])
            scores[held] = model.decision_function(x[held])
    return scores


def classifier(kind: Kind, n_numeric: int, width: int) -> Any:
    """Return one of scikit-learn's, for ``width`` columns of which the first ``n_numeric`` hold numbers and the rest codes."""
    numbers, codes = np.arange(width) < n_numeric, np.arange(width) >= n_numeric
    if kind == "trees":
        return HistGradientBoostingClassifier(
            categorical_features=codes if codes.any() else None,
            early_stopping=False,
            max_iter=50,
            max_leaf_nodes=15,
            random_state=0,
        )
    fill = SimpleImputer(add_indicator=True, keep_empty_features=True)
    spread = OneHotEncoder(max_categories=64, handle_unknown="infrequent_if_exist")
    return make_pipeline(
        make_column_transformer(
            (make_pipeline(fill, StandardScaler()), np.flatnonzero(numbers)),
            (spread, np.flatnonzero(codes)),
        ),
        LogisticRegression(max_iter=1000),
    )


def judge(in_target: Bools, scores: Floats, fold: Ints, confidence: float = 0.95) -> Separation:
    """Average the AUC over folds; those in which a domain has no two rows do not count.

    A fold counts by its pairs of a source and a target row. Where no pair is in the wrong order, the bound is that of an
    error-free result (Clopper and Pearson 1934) among the rows of the smaller domain.
    """
    areas, variances, weights = [], [], []
    for k in np.unique(fold):
        own = fold == k
        m, n = int((~in_target[own]).sum()), int(in_target[own].sum())
        if min(m, n) > 1:
            area, variance = delong(in_target[own], scores[own])
            areas.append(area)
            variances.append(variance)
            weights.append(m * n)
    source_rows, target_rows = int((~in_target).sum()), int(in_target.sum())
    if not areas:
        return Separation(np.nan, np.nan, np.nan, source_rows, target_rows, in_target, scores)
    share = np.array(weights) / np.sum(weights)
    auc = float(share @ np.array(areas))
    error = float(np.sqrt(share**2 @ np.array(variances)))
    if auc in (0.0, 1.0):
        bound = ((1 - confidence) / 2) ** (1 / min(source_rows, target_rows))
        low, high = (bound, 1.0) if auc else (0.0, 1 - bound)
    else:
        half = NormalDist().inv_cdf((1 + confidence) / 2) * error / (auc * (1 - auc))
        low, high = 1 / (1 + np.exp(-np.log(auc / (1 - auc)) + np.array([half, -half])))
    return Separation(auc, float(low), float(high), source_rows, target_rows, in_target, scores)


def delong(events: Bools, scores: Floats) -> tuple[float, float]:
    """Return the area under the ROC curve and DeLong's variance of it.

    Parameters
    ----------
    events, scores
        Whether each row is an event, and its score, ``[n]``; at least two of both kinds.
    """
    of_events, of_others = scores[events], scores[~events]
    m, n = len(of_events), len(of_others)
    ranks = rankdata(np.concatenate([of_events, of_others]))
    below = (ranks[:m] - rankdata(of_events)) / n  # share of others below each event
    above = 1 - (ranks[m:] - rankdata(of_others)) / m  # share of events above each other row
    return float(below.mean()), float(below.var(ddof=1) / m + above.var(ddof=1) / n)
