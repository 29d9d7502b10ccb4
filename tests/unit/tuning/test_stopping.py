"""Rules that end trials, against formulas written out, and scores within float noise, which decide nothing."""

import math

import numpy as np
import pytest

from shoal.tuning.config import ASHAConfig, MedianConfig, NoSchedulerConfig
from shoal.tuning.stopping import Halving, Median, rule_of, signed


def test_a_rung_keeps_the_best_share():
    rule = Halving(ASHAConfig(grace=1, reduction=2))
    scores = np.random.default_rng(1).normal(size=200)
    for i, score in enumerate(scores):
        expected = i > 0 and score < np.quantile(scores[:i], 0.5)
        assert rule.ends(i, 1, score) == expected
    assert not any(rule.ends(i, 3, -9.0) for i in range(9))  # between rungs
    assert set(rule.rungs) == {1}


def test_the_median_is_of_means_up_to_the_epoch():
    draws, rule = np.random.default_rng(2), Median(MedianConfig(grace=2, least_trials=3))
    curves = draws.normal(size=(9, 5))
    for trial, curve in enumerate(curves):
        for epoch, score in enumerate(curve, 1):
            ends = rule.ends(trial, epoch, score)
            if trial < 3 or epoch < 2:
                assert not ends
            else:
                others = np.median(curves[:trial, :epoch].mean(axis=1))
                assert ends == (curve[:epoch].max() < others)


def test_float_noise_decides_nothing():
    for rule in (Halving(ASHAConfig()), Median(MedianConfig(grace=1))):
        ended = [rule.ends(trial, 1, 0.9 - 1e-9 * trial) for trial in range(20)]
        assert not any(ended)
        assert rule.ends(99, 1, 0.9 - 1e-4)


def test_no_number_is_the_worst_in_both_directions():
    assert signed(math.nan, True) == signed(math.nan, False) == -math.inf
    assert signed(0.3, False) == -0.3
    rule = Halving(ASHAConfig())
    assert not rule.ends(1, 1, -math.inf)  # the first to come
    assert not rule.ends(2, 1, 0.5)
    assert not rule.ends(3, 1, 0.6)
    assert rule.ends(4, 1, -math.inf)
    assert rule_of(NoSchedulerConfig(), 9) is None


@pytest.mark.parametrize(("epochs", "first"), [(1, 1), (8, 1), (27, 2), (100, 7)])
def test_the_first_rung_follows_from_the_epochs(epochs, first):
    rule = rule_of(ASHAConfig(), epochs)
    assert isinstance(rule, Halving)
    assert rule.grace == first
    assert Halving(ASHAConfig(grace=2), epochs).grace == 2
