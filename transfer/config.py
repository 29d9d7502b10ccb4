"""The `transfer` section: what a fit starts from, and what of the model is then trained, when and how fast."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from shoal.cluster.components import Choice
from shoal.cluster.config import Config
from shoal.training.config import Positive, Probability, Strength
from shoal.transfer.adaptation.config import ADAPTATIONS, AdaptationChoice, TargetDataConfig

Name = Annotated[str, Field(min_length=1)]
ALL_BUT_HEAD = "all_but_head"
NO_START = {
    "features",
    "adaptation",
    "candidates",
    "target_data",
    "seeds",
    "leave_one_domain_out",
    "in_domain",
}  # keys that are not about one


class GradualConfig(Config):
    """The head first, then a layer more every few epochs, from the head down (Howard and Ruder 2018, section 3.3)."""

    epochs: Annotated[int, Field(ge=1)] = Field(
        1, description="of each stage; the last one has all that are left"
    )


class ProbeConfig(Config):
    """The head first, a linear probe of frozen features, then everything: LP-FT (Kumar et al. 2022)."""

    epochs: Annotated[int, Field(ge=1)] = Field(5, description="in which the head alone is trained")
    learning_rate: Positive | None = Field(None, description="in these epochs; null for the optimiser's")


UNFREEZING: dict[str, type[Config]] = {"gradual": GradualConfig, "probe": ProbeConfig}


class L2SPConfig(Config):
    """A pull to the start in place of weight decay: L2-SP (Li, Grandvalet and Davoine 2018)."""

    start: Annotated[float, Field(gt=0, le=1e6)] = Field(
        0.1,
        description="strength / 2 x the squared distance of the parameters that were taken from their start",
    )
    head: Strength = Field(
        0.01, description="strength / 2 x the squared weights of the others, which are new"
    )


class LoRAConfig(Config):
    """Updates of low rank beside frozen linear layers (Hu et al. 2022), by peft; merged into the weights at the end."""

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Positive | None = Field(
        None, description="updates are multiplied by alpha / rank; null for twice the rank"
    )
    dropout: Probability = 0.0
    layers: tuple[Name, ...] = Field(
        (), description="names of linear layers, with * and ?; empty for all but the head"
    )


class FeaturesConfig(Config):
    """What `shoal features` keeps of a model."""

    layers: Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        ("last",),
        description="names of layers, with * and ?; last is what the layer that answers is given; --list shows all",
    )
    pool: Literal["auto", "mean", "max", "first", "flatten"] = Field(
        "auto",
        description="outputs of several tokens or places to numbers a row; auto is their mean",
    )
    probe: StrictBool = Field(True, description="rank the layers by a linear model of each")


class TransferConfig(Config):
    """How an earlier fit is used again."""

    start: Name | None = Field(
        None,
        description="a run folder, or a file of weights (.safetensors, .pt, .pth), whose weights the fit starts from",
    )
    rename: dict[Name, str] = Field(
        {}, description="what names in a file of weights begin with, and what they begin with in the model"
    )
    statistics: Literal["start", "data"] = Field(
        "start",
        description="means, scales, categories and columns: of the run that the fit starts from, or of the training rows",
    )
    head: Name | None = Field(
        None, description="name of the layer that answers; null for the last linear one"
    )
    new_head: Literal["auto"] | StrictBool = Field(
        "auto",
        description="auto: where the start answers another question than this target, or does not say which",
    )
    freeze: tuple[Name, ...] | Literal["all_but_head"] = Field(
        (), description="names of layers or parameters, with * and ?, that stay as they are; or all_but_head"
    )
    batch_norm: Literal["keep", "update"] = Field(
        "keep", description="running statistics of frozen batch normalisations"
    )
    unfreeze: Annotated[Config, Choice(UNFREEZING, importable=False)] | None = Field(
        None, description="begin with the head alone: gradual or probe"
    )
    rate_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="of the learning rate from each layer to the one below it, from the head down (1 / 2.6 in Howard and Ruder)",
    )
    l2_sp: L2SPConfig | None = None
    lora: LoRAConfig | None = None
    features: FeaturesConfig = FeaturesConfig()
    adaptation: AdaptationChoice | None = Field(None, description="how shoal adapt fits the target domain")
    candidates: tuple[AdaptationChoice, ...] = Field(
        (),
        description="further methods, or settings of one, among which shoal adapt chooses without target labels",
    )
    target_data: TargetDataConfig | None = Field(
        None, description="rows of the target domain, for shoal adapt"
    )
    seeds: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="fits of each kind in shoal adapt, with other first weights and batches"
    )
    leave_one_domain_out: Literal["auto"] | StrictBool = Field(
        "auto",
        description="with data.domain: each source domain takes the target's place in turn, and its labels judge the methods; "
        "auto: where there are candidates to choose from",
    )
    in_domain: StrictBool = Field(
        True,
        description="where there are labelled target rows for the final test: fit a part of them too, as an upper bound that "
        "nothing else learns from",
    )

    @property
    def of_a_start(self) -> tuple[str, ...]:
        """The keys that were given and are about a model to start from."""
        return tuple(sorted(self.model_dump(exclude={"start", "head", *NO_START}, exclude_defaults=True)))

    @model_validator(mode="after")
    def _has_both_domains(self) -> "TransferConfig":
        if (self.adaptation is None) != (self.target_data is None):
            missing, there = (
                ("target_data", "adaptation") if self.target_data is None else ("adaptation", "target_data")
            )
            fix = (
                "{path: …}, the rows of the target domain"
                if missing == "target_data"
                else f"one of {', '.join(ADAPTATIONS)}"
            )
            raise ValueError(f"{there} needs {missing}: give {fix}")
        return self

    @model_validator(mode="after")
    def _frozen_from_a_start(self) -> "TransferConfig":
        for method in (self.adaptation, *self.candidates):
            if self.start is None and getattr(method, "batch_norm", "") == "frozen":
                raise ValueError(
                    "batch_norm: frozen keeps the statistics of transfer.start, and there is none: give start, or use shared or "
                    "per_domain"
                )
        return self

    @model_validator(mode="after")
    def _low_rank_alone(self) -> "TransferConfig":
        others = [name for name in ("freeze", "unfreeze", "l2_sp") if getattr(self, name)]
        others += ["rate_decay"] if self.rate_decay != 1 else []
        if self.lora is not None and others:
            raise ValueError(
                f"lora freezes all weights and trains updates beside them, so {others[0]} has no meaning: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _thaws_something(self) -> "TransferConfig":
        if self.unfreeze is not None and self.freeze == ALL_BUT_HEAD:
            raise ValueError("freeze: all_but_head leaves nothing to unfreeze: leave one of them out")
        return self
