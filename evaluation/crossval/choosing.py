"""The choice among alternatives inside each outer fold, and what the choices say together.

Cawley and Talbot (2010), "On over-fitting in model selection and subsequent selection bias in performance evaluation": the
choice is a part of what is judged.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.cluster.errors import RunError
from shoal.cluster.sharding.names import plural
from shoal.evaluation.crossval.comparing import Facts, summed_up
from shoal.evaluation.metrics import METRICS

MARGIN = 1e-6  # by which an alternative must be better than one before it: above float noise


def chosen(inner: Mapping[str, Sequence[Facts]], fold: int) -> dict[str, Any]:
    """Choose the alternative whose mean over the inner folds of an outer one is best in the first metric.

    Parameters
    ----------
    inner
        The facts of the inner fits, by alternative; of equals, the first is chosen.
    fold
        The outer fold, from 0.

    Returns
    -------
    dict
        ``fold`` (from 1), ``chosen``, and the ``means`` that it was chosen by.

    Raises
    ------
    RunError
        If the metric is undefined in all inner folds of an alternative.
    """
    metric = next(iter(next(iter(inner.values()))[0]["scores"]))
    sign = 1 if METRICS[metric].greater_is_better else -1
    means, best = {}, ""
    for name, fits in inner.items():
        known = [fit["scores"][metric] for fit in fits if fit["scores"][metric] is not None]
        if len(known) < len(fits):
            raise RunError(
                f"{metric} of {name!r} is undefined in {len(fits) - len(known)} of {plural(len(fits), 'inner fold')} of fold "
                f"{fold + 1}, so nothing can be chosen by it: choose fewer inner folds, or another first metric in "
                "evaluation.scoring"
            )
        means[name] = sum(known) / len(known)
        if not best or sign * (means[name] - means[best]) > MARGIN:
            best = name
    return {"fold": fold + 1, "chosen": best, "means": means}


def nested(
    choices: Sequence[Mapping[str, Any]],
    outer: Mapping[str, Sequence[Facts]],
    ratio: float,
    confidence: float,
) -> dict[str, Any]:
    """Return the estimate for the whole procedure, its choice included, and the spread of the choices.

    Parameters
    ----------
    choices
        What `chosen` says, one an outer fold, in order.
    outer
        The facts of the outer fits, by alternative, in order of the folds.
    ratio, confidence
        As `over_folds`.
    """
    judged = [outer[choice["chosen"]][i] for i, choice in enumerate(choices)]
    counts = Counter(choice["chosen"] for choice in choices)
    spread = ", ".join(f"{name} in {n} of {plural(len(choices), 'fold')}" for name, n in counts.most_common())
    advice = "" if len(counts) == 1 else "; the choice hangs on the rows"
    return {
        "scores": summed_up(judged, ratio, confidence),
        "choices": [dict(choice) for choice in choices],
        "sentence": f"chosen inside each fold: {spread}{advice}",
    }
