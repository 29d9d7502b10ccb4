"""Population based training: in each generation, members that are behind go on from one that is ahead, with other values.

Generations begin when the one before is over, and draws are functions of the seed, the generation and the member: so a search is
the same for any number of members that are trained at a time, and after any restart.

References
----------
Jaderberg, Dalibard, Osindero, Czarnecki, Donahue, Razavi, Vinyals, Green, Dunning, Simonyan, Fernando and Kavukcuoglu (2017),
Population based training of neural networks, arXiv:1711.09846: algorithm 1, with truncation selection and perturbation as in
section 4.1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from shoal.training.early_stopping import NOISE
from shoal.tuning.config import DimensionConfig, PBTConfig
from shoal.tuning.sources import WAIT, Wait
from shoal.tuning.space import Space, Values, at
from shoal.tuning.stopping import signed
from shoal.tuning.trials import Trial

_STREAM = 0x706274  # keeps these draws apart from the others of a seed
POPULATION = "population.parquet"
_CHANGING = ("learning_rate", "weight_decay", "l1", "l2")


@dataclass(frozen=True)
class Turn:
    """What a member does in a generation.

    Attributes
    ----------
    trial
        Its number among all turns, from 1.
    generation, member
        From 0.
    start
        The trial whose fit goes on here; None in the first generation.
    values
        With which it goes on.
    """

    trial: int
    generation: int
    member: int
    start: int | None
    values: Values


def change_key(path: str) -> str | None:
    """Return the key of `training.changes` that stands for one of the space; None where there is none."""
    if path.startswith("training.l1."):
        return "l1"
    if path.startswith("training.optimizer.") or path == "training.l2":
        last = path.rpartition(".")[2]
        return last if last in _CHANGING else None
    return None


def interval_of(config: PBTConfig, epochs: int) -> int:
    """Return the epochs of a generation."""
    return max(1, epochs // 5) if config.interval == "auto" else config.interval


def generations(config: PBTConfig, epochs: int) -> int:
    """Return how many generations a fit of so many epochs has; the last one may be shorter."""
    return -(-epochs // interval_of(config, epochs))


class Population:
    """Gives the turns of all members, generation after generation, and knows where each model comes from.

    Parameters
    ----------
    config
        Settings.
    space
        Uniform and log-uniform domains.
    seed
        Root of the draws.
    first
        The values of each member in the first generation.
    epochs
        Of a whole fit.
    greater_is_better
        The direction of scores.
    done
        Trials that an earlier start of the run ended.
    """

    def __init__(
        self,
        config: PBTConfig,
        space: Space,
        seed: int,
        first: Sequence[Values],
        epochs: int,
        greater_is_better: bool,
        done: Iterable[Trial] = (),
    ) -> None:
        self.config, self.space, self.seed, self.epochs = config, space, seed, epochs
        self.members, self.greater_is_better = len(first), greater_is_better
        self.interval, self.generations = interval_of(config, epochs), generations(config, epochs)
        self.turns: dict[int, Turn] = {}
        self.scores: dict[int, float | None] = {}
        self._waiting: list[int] = []
        self._known = {trial.trial: trial for trial in done}
        self._begin([(None, values) for values in first])

    def next(self) -> tuple[int, Values] | Wait | None:
        """Return the next turn of this generation; `WAIT` until others of it are over, None after the last generation."""
        if self._waiting:
            number = self._waiting.pop(0)
            return number, self.turns[number].values
        return WAIT if len(self.scores) < len(self.turns) else None

    def tell(self, trial: Trial) -> None:
        """Learn how a turn ended; the last one of a generation begins the next."""
        self.scores[trial.trial] = trial.score
        if len(self.scores) < len(self.turns) or self.generation + 1 == self.generations:
            return
        if any(score is not None for score in self._own_scores()):
            self._begin(self._bred())

    @property
    def generation(self) -> int:
        """The one under way, from 0."""
        return len(self.turns) // self.members - 1

    def epochs_of(self, turn: Turn) -> tuple[int, int]:
        """Return the first and the last epoch of a turn, from 1."""
        first = turn.generation * self.interval
        return first + 1, min(first + self.interval, self.epochs)

    def first_epoch(self, trial: int) -> int:
        """Return the first epoch of a turn, from 1."""
        return self.epochs_of(self.turns[trial])[0]

    def lineage(self, trial: int) -> list[Turn]:
        """Return the turns through which a model went, the first generation's first."""
        found = [self.turns[trial]]
        while found[-1].start is not None:
            found.append(self.turns[found[-1].start])
        return found[::-1]

    def marked(self, trial: Trial) -> Trial:
        """Return a trial as it is among all turns: one that finished before the last generation is continued."""
        whole = self.turns[trial.trial].generation + 1 == self.generations
        return trial if whole or trial.status != "finished" else replace(trial, status="continued")

    def table(self) -> pa.Table:
        """Return `population.parquet`: a row a turn, what its model comes from, and with which values it was trained when."""
        turns = [self.turns[number] for number in sorted(self.turns)]
        spans = [self.epochs_of(turn) for turn in turns]
        return pa.table(
            {
                "trial": pa.array([t.trial for t in turns], pa.int64()),
                "generation": pa.array([t.generation + 1 for t in turns], pa.int64()),
                "member": pa.array([t.member + 1 for t in turns], pa.int64()),
                "start": pa.array([t.start for t in turns], pa.int64()),
                "first_epoch": pa.array([first for first, _ in spans], pa.int64()),
                "last_epoch": pa.array([last for _, last in spans], pa.int64()),
                "score": pa.array([self.scores.get(t.trial) for t in turns], pa.float64()),
                **{path: pa.array([t.values[path] for t in turns], pa.float64()) for path in self.space},
            }
        )

    def _begin(self, members: Sequence[tuple[int | None, Values]]) -> None:
        """Begin a generation; what is known of it already is told at once."""
        generation, before = len(self.turns) // self.members, len(self.turns)
        for member, (start, values) in enumerate(members):
            number = before + member + 1
            self.turns[number] = Turn(number, generation, member, start, values)
        self._waiting = [
            number for number in range(before + 1, len(self.turns) + 1) if number not in self._known
        ]
        for number in range(before + 1, before + len(members) + 1):
            if number in self._known:
                self.tell(self._known[number])

    def _own_scores(self) -> list[float | None]:
        first = self.generation * self.members + 1
        return [self.scores[number] for number in range(first, first + self.members)]

    def _bred(self) -> list[tuple[int, Values]]:
        """Return where each member goes on from, and its values, in the next generation."""
        scores = [
            signed(float("nan") if s is None else s, self.greater_is_better) for s in self._own_scores()
        ]
        order = _order(scores)
        few = max(1, int(self.config.quantile * self.members))
        first = self.generation * self.members + 1
        ahead, behind = order[:few], set(order[-few:]) - {order[0]}
        found: list[tuple[int, Values]] = []
        for member in range(self.members):
            draws = np.random.default_rng(
                np.random.SeedSequence(self.seed, spawn_key=(_STREAM, self.generation + 1, member))
            )
            better = ahead[int(draws.integers(len(ahead)))]
            lost = scores[member] == -np.inf
            if member in ahead or not (lost or member in behind):
                found.append((first + member, self.turns[first + member].values))
                continue
            if scores[better] == -np.inf:  # fewer members have a score than are ahead
                better = order[0]
            start = self.turns[first + better]
            found.append((start.trial, explored(self.config, self.space, start.values, draws)))
        return found


def _order(scores: Sequence[float]) -> list[int]:
    """Return the members, the best first; of those within float noise of each other, the first one."""
    left, found = list(range(len(scores))), list[int]()
    while left:
        best = max(scores[member] for member in left)
        found.append(next(member for member in left if scores[member] >= best - NOISE))
        left.remove(found[-1])
    return found


def explored(config: PBTConfig, space: Space, values: Values, draws: np.random.Generator) -> Values:
    """Return other values near the ones given, within their domains; each may be drawn anew in place of that."""
    found: dict[str, Any] = {}
    for path, dimension in space.items():
        anew, share, factor = draws.random(), float(draws.random()), config.factors[int(draws.integers(2))]
        if anew < config.resample:
            found[path] = at(dimension, share)
        else:
            low, high = _ends(dimension)
            found[path] = min(max(float(f"{values[path] * factor:.4g}"), low), high)
    return found


def _ends(dimension: DimensionConfig) -> tuple[float, float]:
    found = dimension.uniform or dimension.loguniform
    assert found is not None  # as verbs.tune_population requires
    return found
