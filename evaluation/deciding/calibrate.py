"""Calibrations fitted on held-out rows: a temperature, or isotonic regression.

Shapes: n rows, K classes; scores ``[n]`` of the event, or ``[n, K]``.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.isotonic import IsotonicRegression

from shoal.evaluation.tallies import Array, Floats
from shoal.training.decision import Steps, logits_of

WIDEST = 10.0  # of the logarithm of a temperature, either way


def fit_temperature(y: Array, scores: Floats) -> float | None:
    """Return the temperature of least log loss; None where every row is decided right, and ever colder ones are better.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML, section 4.2.
    """
    z = logits_of(scores)
    if scores.ndim == 1:
        signed = np.where(y == 1, z, -z)
        if (signed > 0).all():
            return None

        def loss(log_temperature: float) -> float:
            return float(np.logaddexp(0.0, -signed * np.exp(-log_temperature)).mean())
    else:
        own = z[np.arange(len(y)), y]
        if ((z >= own[:, None]).sum(axis=1) == 1).all():
            return None

        def loss(log_temperature: float) -> float:
            colder = np.exp(-log_temperature)
            return float((logsumexp(z * colder, axis=1) - own * colder).mean())

    bounds = (-WIDEST, WIDEST)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x))


def fit_isotonic(y: Array, scores: Floats) -> tuple[Steps, ...]:
    """Return rising functions of least squared error: of the event, or of each class against the rest."""
    columns = [scores] if scores.ndim == 1 else list(scores.T)
    events = [y == 1] if scores.ndim == 1 else [y == k for k in range(scores.shape[1])]
    fits = [
        IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(column, event.astype(np.float64))
        for column, event in zip(columns, events, strict=True)
    ]
    return tuple(Steps(x=fit.X_thresholds_.tolist(), y=fit.y_thresholds_.tolist()) for fit in fits)
