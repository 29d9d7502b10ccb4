"""How a model decides, and what its metrics may be said of."""

from dataclasses import dataclass, field

from shoal.evaluation.deciding.costs import USUAL, Rule
from shoal.evaluation.metrics import METRICS, Metric
from shoal.evaluation.tallies import Array, Floats
from shoal.training.costs import NO_AMOUNTS, Amounts
from shoal.training.decision import Calibration

CALIBRATED = "probabilities were calibrated on these rows"
CHOSEN = "the threshold was chosen on these rows"
WITHHELD = (CALIBRATED, CHOSEN)


@dataclass(frozen=True)
class Judging:
    """Calibrated probabilities, the rule of the decisions, and where both come from.

    Parameters
    ----------
    task
        Of the target.
    threshold
        ``usual``, ``given``, ``optimal`` (by costs), ``empirical``, ``own`` (the model learned decisions), or the name of a score
        that is highest there.
    notices
        What is to be said aloud.
    """

    task: str = "binary"
    rule: Rule = USUAL
    calibration: Calibration = field(default_factory=Calibration)
    threshold: str = "usual"
    notices: tuple[str, ...] = ()

    @property
    def decides(self) -> bool:
        """Whether decisions are other than usual, so that predictions name them."""
        return self.rule.costs is not None or self.threshold != "usual"

    @property
    def chosen_on_validation(self) -> bool:
        """Whether the threshold is the best one of the validation rows."""
        return self.threshold not in ("usual", "given", "optimal", "own")

    @property
    def withheld(self) -> dict[str, str]:
        """Metrics that say nothing on the validation rows, with the reason.

        A temperature of a binary task keeps the order of the rows, and with it the metrics of ranks.
        """
        found = {}
        for metric in METRICS.values():
            keeps = metric.ranks is not None and self.task == "binary" and not self.calibration.isotonic
            if self.calibration.is_fitted and not keeps:
                found[metric.name] = CALIBRATED
            elif self.chosen_on_validation and metric.needs in ("decision", "cost"):
                found[metric.name] = CHOSEN
        return found


@dataclass(frozen=True)
class Deciding:
    """A metric of calibrated probabilities and of decisions, as early stopping asks for it."""

    metric: Metric
    judging: Judging

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.metric.name

    @property
    def greater_is_better(self) -> bool:
        """The metric's direction."""
        return self.metric.greater_is_better

    def value(self, y: Array, scores: Floats, amounts: Amounts = NO_AMOUNTS) -> float:
        """Score labels ``[n]`` or ``[n, K]`` against scores as the model gives them, of rows with these cost columns."""
        calibrated = self.judging.calibration(scores, amounts)
        return self.metric.value(y, calibrated, self.judging.rule, amounts=amounts)
