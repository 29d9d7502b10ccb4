"""Generations: who goes on from whom, with which values, in any order of ends and after any restart."""

import math

import numpy as np
import pyarrow as pa
import pytest

from shoal.tuning.config import DimensionConfig, PBTConfig
from shoal.tuning.population import Population, change_key, explored, generations
from shoal.tuning.sources import Wait
from shoal.tuning.space import draw, ordered
from shoal.tuning.trials import Trial, best_of

RATE, DECAY = "training.optimizer.learning_rate", "training.optimizer.weight_decay"
SPACE = ordered({RATE: DimensionConfig(loguniform=(1e-4, 1e-1)), DECAY: DimensionConfig(uniform=(0, 1))})
MEMBERS, EPOCHS = 8, 14
FIRST = [draw(SPACE, 0, member) for member in range(MEMBERS)]


def population(done=(), greater=True, **config):
    return Population(PBTConfig(interval=4, **config), SPACE, 5, FIRST, EPOCHS, greater, done)


def ended(number, values, score=None):
    """A score that depends on the trial alone."""
    value = float(np.random.default_rng([7, number]).normal()) if score is None else score
    return Trial(number, dict(values), "finished", value)


def run(source, order=0):
    """Do all turns; those that can be done at the same time end in an order of their own."""
    draws, found, open_ = np.random.default_rng(order), [], []
    while True:
        given = source.next()
        while given is not None and not isinstance(given, Wait):
            open_.append(given)
            given = source.next()
        if not open_:
            return found
        found.append(ended(*open_.pop(int(draws.integers(len(open_))))))
        source.tell(found[-1])


def test_the_worst_quarter_goes_on_from_the_best_one_with_other_values() -> None:
    source = population()
    run(source)
    assert (source.generations, len(source.turns)) == (4, 32)
    copied = 0
    for generation in range(1, 4):
        first = (generation - 1) * MEMBERS + 1
        before = {number: source.scores[number] for number in range(first, first + MEMBERS)}
        order = sorted(before, key=lambda number: -before[number])
        for member in range(MEMBERS):
            turn = source.turns[first + MEMBERS + member]
            own = first + member
            if own in order[-2:]:
                copied += 1
                assert turn.start in order[:2]
                assert turn.values != source.turns[turn.start].values
                continue
            assert turn.start == own
            assert turn.values == source.turns[own].values
    assert copied == 6
    assert [source.epochs_of(source.turns[n]) for n in (1, 9, 17, 25)] == [(1, 4), (5, 8), (9, 12), (13, 14)]


def test_neither_the_order_of_ends_nor_a_restart_changes_anything() -> None:
    whole = population()
    found = run(whole)
    other = population()
    run(other, order=3)
    assert other.turns == whole.turns
    for kept in (0, 3, 8, 11, 24, 32):
        again = population(found[:kept])
        rest = run(again, order=kept)
        assert again.turns == whole.turns
        assert {trial.trial for trial in rest} == {trial.trial for trial in found[kept:]}
    with_gaps = population([trial for trial in found[:16] if trial.trial % 3])
    run(with_gaps)
    assert with_gaps.turns == whole.turns


def test_a_generation_waits_for_all_of_the_one_before() -> None:
    source = population()
    given = [source.next() for _ in range(MEMBERS)]
    assert isinstance(source.next(), Wait)
    for number, values in given[:-1]:
        source.tell(ended(number, values))
    assert isinstance(source.next(), Wait)
    source.tell(ended(*given[-1]))
    assert source.next()[0] == MEMBERS + 1


def test_a_member_without_a_score_always_goes_on_from_one_that_has_one() -> None:
    source = population()
    for _ in range(MEMBERS):
        number, values = source.next()
        lost = number not in (3, 4)
        source.tell(Trial(number, dict(values), "diverged" if lost else "finished", None if lost else 0.5))
    assert {source.turns[number].start for number in range(9, 17)} == {3, 4}
    assert source.turns[11].values == FIRST[2]  # a tie: neither is ahead of the other
    assert source.turns[12].values == FIRST[3]
    source = population()
    for _ in range(MEMBERS):
        number, values = source.next()
        source.tell(Trial(number, dict(values), "diverged", None))
    assert source.next() is None


def test_lower_is_better_where_the_metric_says_so() -> None:
    source = population(greater=False)
    for _ in range(MEMBERS):
        number, values = source.next()
        source.tell(ended(number, values, float(number)))
    assert {source.turns[15].start, source.turns[16].start} <= {1, 2}
    assert source.turns[9].start == 1


def test_values_are_multiplied_or_drawn_anew_within_their_domains() -> None:
    values = {RATE: 0.09, DECAY: 0.5}
    moved = [explored(PBTConfig(resample=0), SPACE, values, np.random.default_rng(i)) for i in range(200)]
    assert {v[RATE] for v in moved} == {0.072, 0.1}  # the upper end holds
    assert {v[DECAY] for v in moved} == {0.4, 0.6}
    drawn = [
        explored(PBTConfig(resample=1), SPACE, values, np.random.default_rng(i))[RATE] for i in range(400)
    ]
    share = np.log(np.array(drawn) / 1e-4) / math.log(1e3)
    assert abs(share.mean() - 0.5) < 0.05  # uniform in the logarithm
    assert abs(share.std() - 12**-0.5) < 0.03


def test_a_lineage_is_what_the_chosen_model_went_through() -> None:
    source = population()
    trials = [source.marked(trial) for trial in run(source)]
    assert {t.trial for t in trials if t.status == "continued"} == set(range(1, 25))
    best = best_of(trials, greater_is_better=True)
    assert best is not None
    assert best.trial > 24
    lineage = source.lineage(best.trial)
    assert [turn.generation for turn in lineage] == [0, 1, 2, 3]
    table = source.table()
    assert isinstance(table, pa.Table)
    rows = {row["trial"]: row for row in table.to_pylist()}
    assert [rows[turn.trial]["start"] for turn in lineage] == [None, *(turn.trial for turn in lineage[:-1])]
    assert rows[best.trial]["first_epoch"] == 13


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (RATE, "learning_rate"),
        ("training.optimizer.adamw.weight_decay", "weight_decay"),
        ("training.l1.proximal", "l1"),
        ("training.l2", "l2"),
        ("model.dropout", None),
        ("training.optimizer.momentum", None),
        ("training.batch_size", None),
    ],
)
def test_what_can_change_on_the_way(path: str, key: str | None) -> None:
    assert change_key(path) == key


def test_a_generation_is_a_fifth_of_the_epochs() -> None:
    assert [generations(PBTConfig(), epochs) for epochs in (2, 5, 20, 21, 23)] == [2, 5, 5, 6, 6]
