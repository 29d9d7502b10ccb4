"""Where the values of trials come from: a list that is there from the start, or an estimator that learns from scores."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from shoal.cluster.errors import ConfigError
from shoal.tuning.config import DimensionConfig, OptunaConfig
from shoal.tuning.space import Space, Values
from shoal.tuning.trials import Trial

MISSING = (
    "tuning.search: optuna needs the package optuna, which is not installed; run: pip install 'shoal[tune]'"
)


class Wait:
    """There will be more trials, once others have ended."""


WAIT = Wait()


class Source(Protocol):
    """Gives the values of one trial after the other."""

    def next(self) -> tuple[int, Values] | Wait | None:
        """Return the number and the values of the next trial; None where there are no more."""

    def tell(self, trial: Trial) -> None:
        """Learn how a trial ended."""


class Listed:
    """Trials whose values are known: draws, or a grid. What is learned changes nothing.

    Parameters
    ----------
    values
        By number.
    """

    def __init__(self, values: Mapping[int, Values]) -> None:
        self._rest = iter(values.items())

    def next(self) -> tuple[int, Values] | None:
        """Return the next one of the list."""
        return next(self._rest, None)

    def tell(self, trial: Trial) -> None:
        """Do nothing."""


class Parzen:
    """Optuna's tree-structured Parzen estimator, asked for values and told of scores.

    Which values it proposes depends on which trials have ended by then, and so on how many run at a time.

    Parameters
    ----------
    config, space, seed
        Settings, an `ordered` space, and the root of its draws.
    numbers
        Of the trials to come.
    done
        Trials that an earlier start of the run ended.
    greater_is_better
        The direction of scores.

    Raises
    ------
    ConfigError
        If optuna is not installed.

    References
    ----------
    Bergstra, Bardenet, Bengio and Kegl (2011), Algorithms for hyper-parameter optimization, NIPS, section 4; Watanabe (2023),
    Tree-structured Parzen estimator, arXiv:2304.11127, of this implementation.
    """

    def __init__(
        self,
        config: OptunaConfig,
        space: Space,
        seed: int,
        numbers: Sequence[int],
        done: Sequence[Trial],
        greater_is_better: bool,
    ) -> None:
        optuna = import_optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._space = optuna, space
        own = int(np.random.SeedSequence(seed, spawn_key=(len(done),)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", optuna.exceptions.ExperimentalWarning
            )  # of options that we pin in tests
            sampler = optuna.samplers.TPESampler(
                seed=own,
                n_startup_trials=config.startup_trials,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        self._study = optuna.create_study(
            direction="maximize" if greater_is_better else "minimize", sampler=sampler
        )
        self._rest, self._asked = iter(numbers), dict[int, Any]()
        for trial in done:
            self._study.add_trial(self._known(trial))

    def next(self) -> tuple[int, Values] | None:
        """Ask for the values of the next trial."""
        number = next(self._rest, None)
        if number is None:
            return None
        self._asked[number] = asked = self._study.ask()
        values: Values = {}
        for path, dimension in self._space.items():
            if all(w in values and values[w] == v for w, v in (dimension.when or {}).items()):
                values[path] = self._suggest(asked, path, dimension)
        return number, values

    def tell(self, trial: Trial) -> None:
        """Tell the trial's score; one without counts as failed, which the estimator leaves out."""
        asked = self._asked.pop(trial.trial, None)
        if asked is None:
            return
        states = self._optuna.trial.TrialState
        if trial.counts and trial.score is not None and math.isfinite(trial.score):
            self._study.tell(asked, trial.score, state=states.COMPLETE)
        else:
            self._study.tell(asked, state=states.FAIL)

    @staticmethod
    def _suggest(asked: Any, path: str, dimension: DimensionConfig) -> Any:
        if dimension.choice is not None:  # by place: values may be lists and sections
            return dimension.choice[asked.suggest_categorical(path, tuple(range(len(dimension.choice))))]
        low, high = getattr(dimension, dimension.domain)
        if dimension.integer is not None:
            return asked.suggest_int(path, low, high)
        return asked.suggest_float(path, low, high, log=dimension.loguniform is not None)

    def _distribution(self, dimension: DimensionConfig) -> Any:
        made = self._optuna.distributions
        if dimension.choice is not None:
            return made.CategoricalDistribution(tuple(range(len(dimension.choice))))
        low, high = getattr(dimension, dimension.domain)
        if dimension.integer is not None:
            return made.IntDistribution(low, high)
        return made.FloatDistribution(low, high, log=dimension.loguniform is not None)

    def _known(self, trial: Trial) -> Any:
        states = self._optuna.trial.TrialState
        given = {p: self._space[p] for p in trial.values}
        places = {
            path: d.choice.index(trial.values[path]) if d.choice is not None else trial.values[path]
            for path, d in given.items()
        }
        return self._optuna.trial.create_trial(
            state=states.COMPLETE if trial.counts else states.FAIL,
            params=places,
            distributions={path: self._distribution(d) for path, d in given.items()},
            value=trial.score if trial.counts else None,
        )


def import_optuna() -> Any:
    """Import optuna.

    Raises
    ------
    ConfigError
        If it is not installed, with the command that does it.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(MISSING) from error
    return optuna
