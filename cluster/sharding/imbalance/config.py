"""`data.imbalance`: how training rows are resampled, in imbalanced-learn's names."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shoal.cluster.components import Choice, Imported
from shoal.cluster.config import Config
from shoal.cluster.wording import shown

_WORDS = ("auto", "minority", "majority", "not minority", "not majority", "all")


def _strategy(value: object) -> object:
    """Refuse what no sampler takes; what the data decide is checked with the data."""
    if isinstance(value, str) and value in _WORDS:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    if isinstance(value, dict) and value:
        counts = [n for n in value.values() if isinstance(n, int) and not isinstance(n, bool) and n > 0]
        if len(counts) == len(value):
            return {str(name): n for name, n in value.items()}
    raise ValueError(
        f"{shown(value)} is none of {', '.join(_WORDS)}; nor a ratio of the smaller to the larger class, above 0 and at most 1; "
        "nor the rows wanted of each class, such as {fraud: 5000}"
    )


SamplingStrategy = Annotated[
    str | float | dict[str, int],
    BeforeValidator(_strategy, json_schema_input_type=str | float | dict[str, int]),
]
_TARGETS = "auto, a ratio, or the rows wanted of each class after resampling"
Neighbors = Annotated[int, Field(ge=1, le=1000)]


class Sampler(Config):
    """Common to all samplers."""

    sampling_strategy: SamplingStrategy = Field("auto", description=_TARGETS)


class _Exact(Config):
    exact_up_to: int = Field(
        50_000,
        ge=1,
        description="rows whose neighbours are exact, if all ask for theirs; above, they are approximate",
    )


class RandomOverSamplerConfig(Sampler):
    """Copies of the smaller classes' rows, drawn with replacement."""


class RandomUnderSamplerConfig(Sampler):
    """A random part of the larger classes' rows."""

    replacement: bool = False


class SMOTEConfig(Sampler, _Exact):
    """New rows between a row and one of its nearest neighbours of the same class (Chawla et al. 2002)."""

    k_neighbors: Neighbors = 5


class SMOTENCConfig(SMOTEConfig):
    """SMOTE for numbers and categories: the neighbours vote on categories (Chawla et al. 2002, section 6.1)."""


class BorderlineSMOTEConfig(SMOTEConfig):
    """SMOTE from the rows near another class only (Han, Wang and Mao 2005)."""

    m_neighbors: Neighbors = 10
    kind: Literal["borderline-1", "borderline-2"] = "borderline-1"


class ADASYNConfig(Sampler, _Exact):
    """SMOTE with more new rows where the other classes are near (He et al. 2008)."""

    n_neighbors: Neighbors = 5


class NearMissConfig(Sampler):
    """Keep the rows of the larger classes that are near the smallest class (Mani and Zhang 2003)."""

    version: Literal[1, 2, 3] = 1
    n_neighbors: Neighbors = 3
    n_neighbors_ver3: Neighbors = 3


class ClusterCentroidsConfig(Sampler):
    """Replace the larger classes by the centres of their k-means clusters, or by the rows nearest to these."""

    voting: Literal["hard", "soft"] = "soft"


Cleaned = Annotated[
    Literal["auto", "majority", "not minority", "not majority", "all"],
    Field(description="the classes whose rows may go"),
]


class TomekLinksConfig(_Exact):
    """Drop rows that are each other's nearest neighbour and of different classes (Tomek 1976)."""

    sampling_strategy: Cleaned = "auto"


class EditedNearestNeighboursConfig(_Exact):
    """Drop rows that their neighbours do not agree with (Wilson 1972)."""

    sampling_strategy: Cleaned = "auto"
    n_neighbors: Neighbors = 3
    kind_sel: Literal["all", "mode"] = "all"


class SMOTEENNConfig(SMOTEConfig):
    """SMOTE, then edited nearest neighbours over all classes (Batista, Prati and Monard 2004)."""

    n_neighbors: Neighbors = 3
    kind_sel: Literal["all", "mode"] = "all"


class SMOTETomekConfig(SMOTEConfig):
    """SMOTE, then no Tomek links in any class (Batista, Bazzan and Monard 2003)."""


IMBALANCE: dict[str, type[Config]] = {
    "random_over_sampler": RandomOverSamplerConfig,
    "random_under_sampler": RandomUnderSamplerConfig,
    "smote": SMOTEConfig,
    "smotenc": SMOTENCConfig,
    "borderline_smote": BorderlineSMOTEConfig,
    "adasyn": ADASYNConfig,
    "near_miss": NearMissConfig,
    "tomek_links": TomekLinksConfig,
    "edited_nearest_neighbours": EditedNearestNeighboursConfig,
    "cluster_centroids": ClusterCentroidsConfig,
    "smoteenn": SMOTEENNConfig,
    "smotetomek": SMOTETomekConfig,
}
CHOICE = Choice(IMBALANCE)


def named(config: Config) -> str:
    """Return what a method is called in messages: its name, or where it is imported from."""
    return config.path if isinstance(config, Imported) else str(CHOICE.name_of(config))


def makes_rows(config: Config | None) -> bool:
    """Whether a method may add rows that are no copies."""
    if isinstance(config, ClusterCentroidsConfig):
        return config.voting == "soft"
    return isinstance(config, SMOTEConfig | ADASYNConfig | Imported)


ImbalanceChoice = Annotated[Config | Imported, CHOICE]
