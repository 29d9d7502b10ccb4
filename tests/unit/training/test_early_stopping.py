import math

from shoal.training.config import EarlyStoppingConfig
from shoal.training.early_stopping import EarlyStopping


def run(
    scores: list[float], patience: int = 2, min_delta: float = 1e-6, greater: bool = True
) -> tuple[int, int]:
    """Return (best epoch, epochs done)."""
    stopping = EarlyStopping(EarlyStoppingConfig(patience=patience, min_delta=min_delta), greater)
    for epoch, score in enumerate(scores):
        stopping.update(epoch, score)
        if stopping.should_stop:
            return stopping.best_epoch, epoch + 1
    return stopping.best_epoch, len(scores)


def test_stops_after_patience_and_keeps_the_best() -> None:
    assert run([0.1, 0.3, 0.2, 0.25, 0.9]) == (1, 4)
    assert run([3.0, 2.0, 2.5, 2.4, 0.1], greater=False) == (1, 4)
    assert run([0.1, 0.3, 0.2, 0.4, 0.3]) == (3, 5)


def test_float_noise_is_no_improvement() -> None:
    assert run([0.5, 0.5 + 1e-9, 0.5 + 2e-9, 0.9]) == (0, 3)
    assert run([0.5, 0.5 + 1e-9, 0.5 + 2e-9], min_delta=0) == (2, 3)


def test_the_best_epoch_is_the_best_whatever_patience_waits_for() -> None:
    stopping = EarlyStopping(EarlyStoppingConfig(patience=3, min_delta=0.1), True)
    kept = [stopping.update(epoch, score) for epoch, score in enumerate([0.5, 0.55, 0.59, 0.58])]
    assert kept == [True, True, True, False]
    assert (stopping.best, stopping.best_epoch, stopping.epochs_since) == (0.59, 2, 3)
    assert stopping.should_stop
    again = EarlyStopping(stopping.config, True)
    again.state = stopping.state
    assert not again.update(4, 0.595 - 1e-2)
    assert again.update(5, 0.61)  # better than .5 by .11
    assert again.epochs_since == 0


def test_nan_never_improves() -> None:
    assert run([math.nan, math.nan, math.nan, 0.4]) == (3, 4)
    assert run([math.nan] * 5) == (-1, 5)
    assert run([0.2, math.nan, 0.3]) == (2, 3)


def test_without_config_it_remembers_but_never_stops() -> None:
    stopping = EarlyStopping(None, True)
    for epoch, score in enumerate([0.5, 0.1, 0.1, 0.1]):
        stopping.update(epoch, score)
    assert not stopping.should_stop
    assert stopping.best_epoch == 0
