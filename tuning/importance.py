"""How much each key of a space matters: a forest learns scores from values, and each key is shuffled in turn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shoal.tuning.space import Space, share_of
from shoal.tuning.trials import Trial

FEW = 20  # trials, below which the numbers say little
_LEAST = 5
_TREES, _REPEATS = 200, 20


def importance(trials: Sequence[Trial], space: Space, greater_is_better: bool) -> dict[str, Any]:
    """Return the share of the spread of scores that each key accounts for, as a random forest sees it.

    Parameters
    ----------
    trials
        Those with a score are looked at; the scores are ranked first, so that a few very bad trials do not decide.
    space
        Of the values. A key whose condition does not hold counts as a value of its own.

    Returns
    -------
    dict
        ``keys`` (by key, mean and standard deviation over shuffles of the fall of R squared), ``fit`` (the out-of-bag R squared
        of the forest: near or below 0, it has learned nothing), ``trials``; empty where there are fewer than 5.

    References
    ----------
    Breiman (2001), Random forests, Machine Learning 45, section 10; Hutter, Hoos and Leyton-Brown (2014), An efficient approach
    for assessing hyperparameter importance, ICML, for forests as models of scores.
    """
    known = [t for t in trials if t.counts and t.score is not None]
    if len(known) < _LEAST or len({t.score for t in known}) < 2:
        return {}
    from scipy.stats import rankdata
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    x = np.array([_row(t, space) for t in known])
    y = rankdata([t.score if greater_is_better else -(t.score or 0.0) for t in known]) / len(known)
    forest = RandomForestRegressor(_TREES, min_samples_leaf=2, oob_score=True, random_state=0).fit(x, y)
    found = permutation_importance(forest, x, y, n_repeats=_REPEATS, random_state=0)
    order = np.argsort(-found.importances_mean, kind="stable")
    paths = list(space)
    return {
        "keys": {
            paths[i]: {"mean": float(found.importances_mean[i]), "std": float(found.importances_std[i])}
            for i in order
        },
        "fit": float(forest.oob_score_),
        "trials": len(known),
    }


def _row(trial: Trial, space: Space) -> list[float]:
    return [share_of(d, trial.values[path]) if path in trial.values else -1.0 for path, d in space.items()]
