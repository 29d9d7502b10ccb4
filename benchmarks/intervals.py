"""Bootstrap intervals of all binary metrics: Shoal's replicates against resampling rows with scikit-learn.

Usage: python benchmarks/intervals.py [ROWS] [REPLICATES]
Both sides get the same rows in one process. Resampling is timed on 200 replicates and scaled.
Prints the ratio of times and, for each metric, the ratio of the intervals' widths (1 is equal;
200 replicates leave a noise of 5 %).
"""

import sys
import time

import numpy as np
from sklearn import metrics as sk

from shoal.evaluation.intervals import estimate
from shoal.evaluation.metrics import resolve_scoring

SKLEARN = {
    "average_precision": lambda y, s: sk.average_precision_score(y, s),
    "roc_auc": lambda y, s: sk.roc_auc_score(y, s),
    "log_loss": lambda y, s: sk.log_loss(y, s),
    "brier": lambda y, s: sk.brier_score_loss(y, s),
    "accuracy": lambda y, s: sk.accuracy_score(y, s >= 0.5),
    "balanced_accuracy": lambda y, s: sk.balanced_accuracy_score(y, s >= 0.5),
    "f1": lambda y, s: sk.f1_score(y, s >= 0.5),
    "precision": lambda y, s: sk.precision_score(y, s >= 0.5),
    "recall": lambda y, s: sk.recall_score(y, s >= 0.5),
    "mcc": lambda y, s: sk.matthews_corrcoef(y, s >= 0.5),
}


def main(rows: int, replicates: int) -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(rows) < 0.24).astype(np.int64)
    scores = 1 / (1 + np.exp(-rng.normal(size=rows) - 1.8 * y + 1.5))
    ours = []
    for _ in range(5):
        start = time.perf_counter()
        found = estimate(y, scores, resolve_scoring("auto", "binary"), replicates=replicates)
        ours.append(time.perf_counter() - start)
    strata, drawn = [np.flatnonzero(y == k) for k in (0, 1)], {name: [] for name in SKLEARN}
    timed = min(200, replicates)
    start = time.perf_counter()
    for _ in range(timed):
        chosen = np.concatenate([rng.choice(part, len(part)) for part in strata])
        for name, metric in SKLEARN.items():
            drawn[name].append(metric(y[chosen], scores[chosen]))
    theirs = (time.perf_counter() - start) * replicates / timed
    mine = float(np.median(ours))
    print(
        f"{rows:,} rows, {replicates:,} replicates: {mine:.2f} s against {theirs:.1f} s, ratio {theirs / mine:.0f}"
    )
    for name, values in drawn.items():
        width = (found[name].high - found[name].low) / (2 * 1.96 * float(np.std(values)))
        print(f"  {name:18} width ratio {width:.2f}  [{found[name].low:.4f}, {found[name].high:.4f}]")


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    main(*words, *(20_000, 1000)[len(words) :])
