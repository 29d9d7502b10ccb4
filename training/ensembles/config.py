"""`training.ensemble`: fits of several members, and what becomes of them."""

from typing import Annotated

from pydantic import Field, StrictBool

from shoal.cluster.components import Choice
from shoal.cluster.config import Config

Members = Annotated[int, Field(ge=1, le=1000)]


class CostingConfig(Config):
    """The mean probability of members, each fitted to its own cost-proportionate rejection sample.

    By `evaluation.costs` (Zadrozny, Langford and Abe 2003, section 2.3.2).
    """

    members: Members = Field(
        10, description="fits; each keeps about as many rows as sampling: cost_rejection"
    )


class MetaCostConfig(Config):
    """One model, fitted to training rows that carry the class of least expected cost; it decides by its likeliest class.

    By `evaluation.costs`, and the mean probability of members on bootstrap resamples (Domingos 1999).
    """

    members: Members = Field(10, description="fits before the one that is kept")
    out_of_bag: StrictBool = Field(
        True, description="a row's probabilities come from the members that did not train on it (q = false)"
    )


ENSEMBLES: dict[str, type[Config]] = {"costing": CostingConfig, "metacost": MetaCostConfig}
EnsembleChoice = Annotated[Config, Choice(ENSEMBLES, importable=False)]
