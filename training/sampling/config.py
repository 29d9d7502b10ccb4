"""`training.sampling`: how the rows of a step are chosen."""

from typing import Annotated

from pydantic import Field

from shoal.cluster.components import Choice
from shoal.cluster.config import Config


class ShuffleConfig(Config):
    """Every row once an epoch, in a random order."""


class ProportionalConfig(Config):
    """Every row once an epoch; each step has its share of each class, to one row."""


class ClassBalancedConfig(Config):
    """As many rows of each class in every step; small classes come round more often than large ones."""


class WeightedConfig(Config):
    """Rows of a class come as often as its weight says, evenly over the steps."""

    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="by class name, such as {fraud: 10}; the others weigh 1"
    )


class QuotasConfig(Config):
    """A given number of rows of some classes in every step; the others share what is left of it, by their sizes."""

    rows: dict[str, Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="by class name, such as {fraud: 8}; at most the batch size in sum"
    )


class CostRejectionConfig(Config):
    """Rows kept for the fit, once, with a chance in proportion to what mistakes on them cost; of these, every one once an epoch.

    By `evaluation.costs` (Zadrozny, Langford and Abe 2003, section 2.3).
    """


class BootstrapConfig(Config):
    """Rows drawn with replacement, once: each is in every epoch as often as it was drawn, or not at all.

    How often is of the Poisson distribution with mean 1, row by row, which is what drawing n of n rows tends to.
    """


SAMPLINGS: dict[str, type[Config]] = {
    "shuffle": ShuffleConfig,
    "proportional": ProportionalConfig,
    "class_balanced": ClassBalancedConfig,
    "weighted": WeightedConfig,
    "quotas": QuotasConfig,
    "cost_rejection": CostRejectionConfig,
    "bootstrap": BootstrapConfig,
}
SamplingChoice = Annotated[Config, Choice(SAMPLINGS, importable=False)]
