"""The adaptation part of the `transfer` section: the method, and where the target domain's rows are."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from shoal.cluster.components import Choice
from shoal.cluster.config import Config
from shoal.cluster.sharding.config import Names
from shoal.training.config import NonNegative, Positive, Probability

Name = Annotated[str, Field(min_length=1)]
Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class InStepConfig(Config):
    """What methods have that see target rows in every step."""

    batch_norm: Literal["shared", "per_domain", "frozen"] = Field(
        "shared",
        description="statistics of batch normalisations: of both domains' rows together; of each domain's, the target's being "
        "kept; or those of transfer.start",
    )


class AlignmentConfig(InStepConfig):
    """What all methods have that make a layer's outputs alike in both domains."""

    layer: Name | None = Field(
        None,
        description="name of the layer whose outputs are aligned; null for what the last linear one is given",
    )
    weight: NonNegative = Field(1.0, description="of the alignment beside the loss of the labelled rows")
    label_shift: StrictBool = Field(
        False,
        description="weigh source rows by the target's class shares (BBSE), in the loss and in the alignment, where classes are "
        "not equally common in both",
    )


class AdversarialConfig(AlignmentConfig):
    """What methods with a domain discriminator have."""

    hidden: tuple[Width, ...] = Field((128,), description="hidden widths of the discriminator")
    ramp: NonNegative = Field(
        10.0,
        description="the reversed gradient is multiplied by 2 / (1 + exp(-ramp x progress)) - 1; 0 for 1 throughout",
    )


class DANNConfig(AdversarialConfig):
    """Domain-adversarial training (Ganin et al. 2016)."""


class CDANConfig(AdversarialConfig):
    """Conditional adversarial training (Long et al. 2018): the discriminator sees outputs and class probabilities together."""

    entropy: StrictBool = Field(True, description="rows of which the model is sure count more (CDAN+E)")


class DeepCORALConfig(AlignmentConfig):
    """Covariances made alike (Sun and Saenko 2016)."""


class MMDConfig(AlignmentConfig):
    """Kernel means made alike, as in deep adaptation networks (Long et al. 2015)."""

    kernels: Annotated[int, Field(ge=1, le=20)] = Field(
        5, description="Gaussian kernels whose widths double from one to the next, around the mean distance"
    )


class MCCConfig(InStepConfig):
    """Minimum class confusion on the target's rows (Jin et al. 2020)."""

    weight: NonNegative = 1.0
    temperature: Positive = 2.5


class ImportanceWeightingConfig(Config):
    """Source rows weighted by how much more common they are in the target, by a domain classifier (Bickel et al. 2009)."""

    clip: Annotated[float, Field(gt=1)] = Field(20.0, description="largest weight, as a multiple of the mean")


class BBSEConfig(Config):
    """Source rows weighted by the target's class shares: black-box shift estimation (Lipton, Wang and Smola 2018)."""

    soft: StrictBool = Field(True, description="from probabilities; false from decisions")


class SelfTrainingConfig(InStepConfig):
    """The model's own sure answers on target rows are learned as labels (Lee 2013; Zou et al. 2018)."""

    start: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.3, description="share of the epochs before the first labels are given"
    )
    every: Annotated[int, Field(ge=1)] = Field(1, description="epochs between two rounds of labels")
    confidence: Probability = Field(0.0, description="least probability of a label")
    class_balanced: StrictBool = Field(
        True, description="the same share of each class's answers, the surest ones; false: of all answers"
    )
    shares: tuple[Share, Share] = Field(
        (0.2, 0.8),
        description="of answers that become labels, in the first round and in the last: the curriculum",
    )
    weight: NonNegative = 1.0
    teacher: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="labels come from an exponential average of weights and buffers with this decay a step (mean teacher); null: "
        "from the model",
    )


class RoundsConfig(Config):
    """What methods have whose models label target rows for each other, in rounds."""

    start: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.3, description="share of the epochs before the first labels are given"
    )
    every: Annotated[int, Field(ge=1)] = Field(1, description="epochs between two rounds of labels")
    confidence: Probability = Field(0.8, description="least probability of a label")


class CoTrainingConfig(RoundsConfig):
    """Two models of different columns label rows for each other (Blum and Mitchell 1998)."""

    views: tuple[Names, Names] | Literal["auto"] = Field(
        "auto",
        description="two lists of columns, with * and ?; auto splits them into two that tell about as much",
    )
    share: Share = Field(
        0.5,
        description="of each class's answers, the surest ones, in the last round; it grows from round to round",
    )


class TriTrainingConfig(RoundsConfig):
    """Three models of bootstrapped rows; two that agree label a row for the third (Zhou and Li 2005)."""


ADAPTATIONS: dict[str, type[Config]] = {
    "dann": DANNConfig,
    "cdan": CDANConfig,
    "deep_coral": DeepCORALConfig,
    "mmd": MMDConfig,
    "mcc": MCCConfig,
    "importance_weighting": ImportanceWeightingConfig,
    "bbse": BBSEConfig,
    "self_training": SelfTrainingConfig,
    "co_training": CoTrainingConfig,
    "tri_training": TriTrainingConfig,
}
AdaptationChoice = Annotated[Config, Choice(ADAPTATIONS, importable=False)]


class TargetDataConfig(Config):
    """The target domain's rows; of them no label is read while anything is trained or chosen."""

    path: Names = Field(
        description="rows without labels, or with labels that stay unread: Parquet, as data.path"
    )
    test: Literal["same"] | Names | None = Field(
        None,
        union_mode="left_to_right",  # a text alone would else be taken for a file of that name
        description="labelled rows for the final test alone: their files, or same for the labels of the rows themselves",
    )

    oracle: StrictBool = Field(
        False,
        description="choose among several methods by the labels of test: for research alone, and every result says so",
    )

    @model_validator(mode="after")
    def _labels_for_an_oracle(self) -> "TargetDataConfig":
        if self.oracle and self.test is None:
            raise ValueError("oracle chooses by labels of the target, and there are none: give test")
        return self

    @model_validator(mode="after")
    def _other_rows(self) -> "TargetDataConfig":
        if isinstance(self.test, tuple) and set(self.test) & set(self.path):
            raise ValueError(
                "test names a file that path names too; say test: same for the labels of the same rows"
            )
        return self
