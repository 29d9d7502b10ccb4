"""The `tuning` section: which values are tried, how they are found, and by what trials are compared."""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from shoal.cluster.components import Choice
from shoal.cluster.config import Config

TRIALS = 32
Number = Annotated[float, Field(strict=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
DOMAINS = ("uniform", "loguniform", "integer", "choice")


class DimensionConfig(Config):
    """The values that one key of the experiment may take: one of uniform, loguniform, integer and choice."""

    uniform: tuple[Number, Number] | None = Field(None, description="[lowest, highest]")
    loguniform: tuple[Number, Number] | None = Field(
        None, description="[lowest, highest], above 0: uniform in the logarithm"
    )
    integer: tuple[int, int] | None = Field(None, description="[lowest, highest], both included")
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = Field(
        None, description="a list of values, each as likely"
    )
    when: dict[str, Any] | None = Field(
        None,
        description="{other key: value}: this key is varied only where the other one has that value, and else stays as it is",
    )

    @model_validator(mode="after")
    def _is_one_domain(self) -> "DimensionConfig":
        given = [name for name in DOMAINS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(DOMAINS)}, got {' and '.join(given) or 'none'}; such as {{loguniform: [1e-5, 1e-1]}}"
            )
        if self.choice is None:
            low, high = getattr(self, given[0])
            if not low < high:
                raise ValueError(
                    f"{given[0]}: the first value must be below the second, got [{low:g}, {high:g}]"
                )
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(
                f"loguniform: both values must be above 0, got [{self.loguniform[0]:g}, {self.loguniform[1]:g}]; use uniform"
            )
        return self

    @property
    def domain(self) -> str:
        """Which of the domains it is."""
        return next(name for name in DOMAINS if getattr(self, name) is not None)


class RandomConfig(Config):
    """Each trial draws its values by itself (Bergstra and Bengio 2012)."""


class GridConfig(Config):
    """All combinations: every value of a choice, and evenly spaced ones of the other domains."""

    points: Annotated[int, Field(ge=2, le=1000)] = Field(
        3, description="values of uniform, loguniform and integer domains, both ends included"
    )


class OptunaConfig(Config):
    """A tree-structured Parzen estimator proposes values (Bergstra et al. 2011; the package optuna)."""

    startup_trials: Annotated[int, Field(ge=1)] = Field(
        10, description="trials that are drawn at random, before it has something to go by"
    )


SEARCHES: dict[str, type[Config]] = {"random": RandomConfig, "grid": GridConfig, "optuna": OptunaConfig}


class NoSchedulerConfig(Config):
    """Every trial is trained to its end."""


class ASHAConfig(Config):
    """Successive halving without waiting: at each rung, trials below the best share end (Li et al. 2020, ASHA)."""

    grace: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="epochs of the first rung; auto: 2/3 of training.epochs / reduction^2, so that the third one leaves a third",
    )
    reduction: Annotated[int, Field(ge=2)] = Field(
        3, description="a rung is this many times the epochs of the one before; the best 1 / reduction go on"
    )


class MedianConfig(Config):
    """A trial ends where its best score is worse than the median of the others' means so far (Golovin et al. 2017)."""

    grace: Annotated[int, Field(ge=1)] = Field(3, description="epochs that each trial may have")
    least_trials: Annotated[int, Field(ge=1)] = Field(
        3, description="other trials that must have come as far"
    )


class PBTConfig(Config):
    """Trials are members of a population: those behind go on from those ahead, with other values (Jaderberg et al. 2017)."""

    interval: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="epochs of a generation; auto: a fifth of training.epochs"
    )
    quantile: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.25, description="share of the members that is ahead, and share that is behind"
    )
    resample: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25, description="probability that a value is drawn anew, not multiplied by one of the factors"
    )
    factors: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (0.8, 1.2), description="by one of which a value is multiplied: below 1, and above it"
    )

    @model_validator(mode="after")
    def _moves_both_ways(self) -> "PBTConfig":
        low, high = self.factors
        if not low < 1 < high:
            raise ValueError(
                f"factors: give one below 1 and one above, such as [0.8, 1.2], not [{low:g}, {high:g}]"
            )
        return self


SCHEDULERS: dict[str, type[Config]] = {
    "none": NoSchedulerConfig,
    "asha": ASHAConfig,
    "median": MedianConfig,
    "pbt": PBTConfig,
}
SearchChoice = Annotated[Config, Choice(SEARCHES, importable=False)]
SchedulerChoice = Annotated[Config, Choice(SCHEDULERS, importable=False)]


_L1_RATIO = 0.5


class PathConfig(Config):
    """The regularisation path of `model: linear`, chosen on by the folds of `evaluation.cv`."""

    penalty: Literal["l1", "l2", "elastic_net"] = "l1"
    l1_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        _L1_RATIO, description="share of L1 of an elastic_net"
    )
    strengths: Annotated[int, Field(ge=2, le=1000)] = Field(
        100, description="how many, from the lowest one that zeroes every weight downward"
    )
    ratio: Share = Field(1e-3, description="of the lowest strength to the highest")
    choose: Literal["best", "one_standard_error"] = Field(
        "best",
        description="lowest mean loss over folds, or the highest strength within a standard error of it",
    )

    @model_validator(mode="after")
    def _share_is_of_both(self) -> "PathConfig":
        if (
            "l1_ratio" in self.model_fields_set
            and self.penalty != "elastic_net"
            and self.l1_ratio != _L1_RATIO
        ):
            raise ValueError(
                f"l1_ratio is of penalty: elastic_net, and changes nothing of {self.penalty}; leave one of them out"
            )
        return self

    @property
    def l1(self) -> float:
        """The share of L1."""
        return {"l1": 1.0, "l2": 0.0, "elastic_net": self.l1_ratio}[self.penalty]


class TuningConfig(Config):
    """Fits with other values each, the best of which is refitted and judged on rows that none of them saw."""

    trials: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description=f"how many; null for {TRIALS}, or for a whole grid"
    )
    space: dict[str, DimensionConfig] | None = Field(
        None,
        description="{key of the experiment: {loguniform: [lowest, highest]}}, or uniform, integer, choice; null for learning "
        "rate, weight decay, dropout and penalties, as the network has them",
    )
    search: SearchChoice = RandomConfig()
    scheduler: SchedulerChoice = NoSchedulerConfig()
    objective: Literal["validation", "cv", "expected_cost", "target"] = Field(
        "validation",
        description="by what trials are compared: the first metric of evaluation.scoring on the validation rows, its mean over "
        "the folds of evaluation.cv, what decisions cost on the validation rows, or with transfer.adaptation the mean rank of "
        "scores that need no label of the target",
    )
    max_concurrent_trials: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="auto: as many as there is room for; the results of random and grid do not depend on it",
    )
    path: PathConfig | None = Field(
        None,
        description="in the place of trials: all strengths of a linear model's penalty, one after the other",
    )
    refit: StrictBool = Field(True, description="fit the best trial's values again, and judge that model")

    @model_validator(mode="after")
    def _path_is_alone(self) -> "TuningConfig":
        if self.path is not None and (others := sorted(self.model_fields_set - {"path", "refit"})):
            usual = type(self)()
            given = [name for name in others if getattr(self, name) != getattr(usual, name)]
            if given:
                raise ValueError(
                    f"path goes along strengths of its own, and {' and '.join(given)} would change nothing: leave out one of them"
                )
        return self

    @model_validator(mode="after")
    def _ranks_at_the_end(self) -> "TuningConfig":
        if self.objective == "target":
            for key, given, usual in (
                ("scheduler", self.scheduler, NoSchedulerConfig),
                ("search", self.search, RandomConfig | GridConfig),
            ):
                if not isinstance(given, usual):
                    fix = "none" if key == "scheduler" else "random or grid"
                    raise ValueError(
                        f"objective: target ranks trials among each other once all are over, which nothing can go by before: use "
                        f"{key}: {fix}"
                    )
        return self

    @model_validator(mode="after")
    def _breeds_by_itself(self) -> "TuningConfig":
        if isinstance(self.scheduler, PBTConfig) and not isinstance(self.search, RandomConfig):
            name = Choice(SEARCHES).name_of(self.search)
            raise ValueError(
                f"search: {name} proposes values of whole trials, and scheduler: pbt changes them on the way: use search: random"
            )
        return self

    @model_validator(mode="after")
    def _stops_what_has_epochs(self) -> "TuningConfig":
        if self.objective == "cv" and not isinstance(self.scheduler, NoSchedulerConfig):
            name = Choice(SCHEDULERS).name_of(self.scheduler)
            raise ValueError(
                f"scheduler: {name} ends trials by their score after each epoch, and objective: cv has one for each fold: use "
                "scheduler: none, or objective: validation"
            )
        return self
