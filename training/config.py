"""The `model` and `training` sections, and the registries that their components come from."""

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from shoal.cluster.components import Choice, Imported
from shoal.cluster.config import Config, Duration
from shoal.training.ensembles.config import ENSEMBLES, EnsembleChoice
from shoal.training.losses.config import AutoLossConfig, LogitAdjustedConfig, LossChoice
from shoal.training.sampling.config import BootstrapConfig, SamplingChoice, ShuffleConfig
from shoal.training.schedules.config import ConstantConfig, ScheduleChoice

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Strength = Annotated[float, Field(ge=0, le=1e6)]  # beyond, the objective is the penalty
Probability = Annotated[float, Field(ge=0, lt=1)]


class MLPConfig(Config):
    """Fully connected layers over standardised numbers and embedded categories."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128, 128)
    dropout: Probability = 0.0
    embedding: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="width of each column's embedding; auto: min(50, (categories + 1) // 2)"
    )

    @model_validator(mode="after")
    def _dropout_has_a_layer(self) -> "MLPConfig":
        if self.dropout and not self.hidden:
            raise ValueError(
                f"dropout: {self.dropout:g} is of hidden layers, and there are none; give some, or leave dropout out"
            )
        return self


class LinearConfig(Config):
    """Linear or logistic regression: a weight a number, a weight a category."""


class CNNConfig(Config):
    """Convolutions over an image, each followed by a halving of its size; other columns join before the last layers."""

    channels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (32, 64)
    hidden: Annotated[int, Field(ge=1)] = 128
    dropout: Probability = 0.0


class EmbeddingBagConfig(Config):
    """The mean of a text's token embeddings, with other columns, through one hidden layer (Joulin et al. 2017 have none)."""

    width: Annotated[int, Field(ge=1)] = 64
    hidden: Annotated[int, Field(ge=1)] = 128
    dropout: Probability = 0.0


class PretrainedConfig(Config):
    """A network of Hugging Face's for texts or images, from a local folder, and a linear layer that answers."""

    path: Annotated[str, Field(min_length=1)] = Field(
        description="a folder on this disk with config.json and weights as safetensors"
    )
    pool: Literal["mean", "first"] = Field(
        "mean", description="of what the network gives a token or a place: their mean, or the first"
    )
    dropout: Probability = Field(0.0, description="before the last layer")
    architecture: dict[str, Any] | None = Field(
        None, description="what config.json holds; written into a trained model, which needs no folder"
    )


MODELS: dict[str, type[Config]] = {
    "mlp": MLPConfig,
    "linear": LinearConfig,
    "cnn": CNNConfig,
    "embedding_bag": EmbeddingBagConfig,
    "pretrained": PretrainedConfig,
}
READS = {"cnn": "image", "embedding_bag": "text"}  # models that need a column of a type


class SGDConfig(Config):
    """Stochastic gradient descent (`torch.optim.SGD`)."""

    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    dampening: NonNegative = 0.0
    weight_decay: Strength = 0.0
    nesterov: StrictBool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SGDConfig":
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov needs momentum above 0 and dampening 0, not {self.momentum} and {self.dampening}: change them, or "
                "leave nesterov out"
            )
        return self


class AdamConfig(Config):
    """Adam (`torch.optim.Adam`; Kingma and Ba 2015). Its weight decay is an L2 penalty."""

    learning_rate: Positive = 1e-3
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Strength = 0.0
    amsgrad: StrictBool = False


class AdamWConfig(AdamConfig):
    """AdamW, with decoupled weight decay (`torch.optim.AdamW`; Loshchilov and Hutter 2019)."""

    weight_decay: Strength = 0.01


class AdagradConfig(Config):
    """AdaGrad (`torch.optim.Adagrad`; Duchi, Hazan and Singer 2011)."""

    learning_rate: Positive = 1e-2
    lr_decay: NonNegative = 0.0
    weight_decay: Strength = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: Positive = 1e-10


class RMSpropConfig(Config):
    """RMSprop (`torch.optim.RMSprop`; Tieleman and Hinton 2012, lecture 6.5)."""

    learning_rate: Positive = 1e-2
    alpha: Probability = 0.99
    eps: Positive = 1e-8
    weight_decay: Strength = 0.0
    momentum: Probability = 0.0
    centered: StrictBool = False


class NAdamConfig(Config):
    """Adam with Nesterov momentum (`torch.optim.NAdam`; Dozat 2016)."""

    learning_rate: Positive = 2e-3
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Strength = 0.0
    momentum_decay: NonNegative = 4e-3
    decoupled_weight_decay: StrictBool = False


class RAdamConfig(Config):
    """Rectified Adam (`torch.optim.RAdam`; Liu et al. 2020)."""

    learning_rate: Positive = 1e-3
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Strength = 0.0
    decoupled_weight_decay: StrictBool = False


class AdadeltaConfig(Config):
    """Adadelta (`torch.optim.Adadelta`; Zeiler 2012)."""

    learning_rate: Positive = 1.0
    rho: Probability = 0.9
    eps: Positive = 1e-6
    weight_decay: Strength = 0.0


class SearchConfig(Config):
    """What optimisers that search along a line share; each step runs several iterations over its rows."""

    learning_rate: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        1.0, description="length of the first trial of a search"
    )
    max_iter: Annotated[int, Field(ge=1)] = Field(20, description="iterations a step")
    max_eval: Annotated[int, Field(ge=2)] | None = Field(
        None, description="evaluations a step; null for 1.25 (lbfgs) or 2.5 (nonlinear_cg) times max_iter"
    )
    tolerance_grad: NonNegative = Field(
        1e-7, description="converged where no element of the gradient is above it"
    )
    tolerance_change: NonNegative = Field(
        1e-14,
        description="converged where the objective (lbfgs), or objective and weights (nonlinear_cg), change by less",
    )


class LBFGSConfig(SearchConfig):
    """L-BFGS with a strong-Wolfe line search (`torch.optim.LBFGS`; Liu and Nocedal 1989); wants batch_size: full."""

    history_size: Annotated[int, Field(ge=1)] = Field(
        50, description="pairs of steps and gradients kept, each twice the size of the weights"
    )


class NonlinearCGConfig(SearchConfig):
    """Nonlinear conjugate gradient with a strong-Wolfe line search (Nocedal and Wright 2006); wants batch_size: full."""

    method: Literal["polak_ribiere_plus", "hager_zhang", "fletcher_reeves"] = "polak_ribiere_plus"
    restart: Annotated[int, Field(ge=1)] | None = Field(
        None, description="iterations after which it begins anew; null for the number of parameters"
    )


OPTIMIZERS: dict[str, type[Config]] = {
    "sgd": SGDConfig,
    "adagrad": AdagradConfig,
    "rmsprop": RMSpropConfig,
    "adam": AdamConfig,
    "adamw": AdamWConfig,
    "nadam": NAdamConfig,
    "radam": RAdamConfig,
    "adadelta": AdadeltaConfig,
    "lbfgs": LBFGSConfig,
    "nonlinear_cg": NonlinearCGConfig,
}
SEARCHING = ("lbfgs", "nonlinear_cg")  # along a line, with several evaluations a step


class L1Config(Config):
    """A penalty of strength x the sum of absolute weights (lasso; Tibshirani 1996)."""

    subgradient: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None,
        description="strength; its sign goes into the gradient: small weights, seldom zeros; any first-order optimiser",
    )
    proximal: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="strength; weights are shrunk after each step, exactly to zero: features go"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "L1Config":
        if (self.subgradient is None) == (self.proximal is None):
            raise ValueError("give either subgradient or proximal, each the penalty's strength")
        return self

    @property
    def strength(self) -> float:
        """The penalty's strength."""
        return self.subgradient or self.proximal or 0.0


class ParameterGroupConfig(Config):
    """Other values for the parameters whose name matches; the first entry that matches counts."""

    match: Annotated[str, Field(min_length=1)] = Field(
        description="a parameter's name, with * and ? as in file names"
    )
    learning_rate: Positive | None = None
    weight_decay: Strength | None = None
    l1: Strength | None = Field(None, description="strength, applied as training.l1 says")
    l2: Strength | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "ParameterGroupConfig":
        if self.model_dump(exclude={"match"}, exclude_none=True) == {}:
            raise ValueError(
                f"the entry for {self.match!r} changes nothing; give a learning_rate, weight_decay, l1 or l2, or leave it out"
            )
        return self


class ChangeConfig(Config):
    """Other values from an epoch on; what is left out stays as it was, and so do values of `parameter_groups`."""

    epoch: Annotated[int, Field(ge=2)] = Field(description="the first one with these values, counted from 1")
    learning_rate: Positive | None = Field(
        None,
        description="rates of parameter_groups keep their ratio to it, and training.schedule multiplies it",
    )
    weight_decay: Strength | None = None
    l1: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="strength, applied as training.l1 says"
    )
    l2: Strength | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "ChangeConfig":
        if not self.values:
            raise ValueError(
                f"the entry for epoch {self.epoch} changes nothing; give a learning_rate, weight_decay, l1 or l2, or leave it out"
            )
        return self

    @property
    def values(self) -> dict[str, float]:
        """What changes."""
        return self.model_dump(exclude={"epoch"}, exclude_none=True)


class MixupConfig(Config):
    """Train on blends of two rows (Zhang et al. 2018): lambda from Beta(alpha, alpha), one a step."""

    alpha: Positive = 0.2


class AugmentConfig(Config):
    """Training images are moved and mirrored at random."""

    flip: StrictBool = Field(False, description="left and right are exchanged, in half of the draws")
    crop: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="pixels by which an image moves at most, each way; what is beyond its edge is the mean colour",
    )

    @model_validator(mode="after")
    def _does_something(self) -> "AugmentConfig":
        if not self.flip and not self.crop:
            raise ValueError("it changes nothing: give flip: true, or crop: 4, or leave augment out")
        return self


class EMAConfig(Config):
    """An exponential moving average of the weights, of every step (Polyak and Juditsky 1992)."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.999, description="of the average a step; (1 + n) / (10 + n) after n steps where that is less"
    )


class SWAConfig(Config):
    """The mean of the weights at the ends of the last epochs (stochastic weight averaging; Izmailov et al. 2018)."""

    start: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.75, description="share of the epochs before the first one"
    )


AVERAGES: dict[str, type[Config]] = {"ema": EMAConfig, "swa": SWAConfig}


class EarlyStoppingConfig(Config):
    """Stop when the validation score has not improved by more than `min_delta` for `patience` epochs.

    The score is the first metric of `evaluation.scoring`.
    """

    patience: Annotated[int, Field(ge=1)] = 5
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="first epochs, in which patience does not run")
    min_delta: NonNegative = Field(
        1e-6, description="margin of an improvement; keeps float noise from deciding"
    )
    restore_best: StrictBool = True


class CheckpointConfig(Config):
    """Resumable state, so that a killed run goes on where it was."""

    every: Duration = Field(timedelta(minutes=10), description="time between checkpoints")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(2, description="how many to keep")


class DDPConfig(Config):
    """Each worker holds the whole model; gradients are averaged (torch's DistributedDataParallel; Li et al. 2020)."""


class DeepSpeedConfig(Config):
    """Workers share optimiser state, gradients and parameters (ZeRO; Rajbhandari et al. 2020)."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = Field(
        2, description="what is shared: 0 nothing, 1 optimiser state, 2 gradients too, 3 parameters too"
    )
    offload_optimizer: StrictBool = Field(
        False, description="keep the optimiser's state in the CPU's memory; zero_stage 1 to 3"
    )
    offload_parameters: StrictBool = Field(
        False, description="keep parameters in the CPU's memory; zero_stage 3"
    )

    @model_validator(mode="after")
    def _shares_what_it_offloads(self) -> "DeepSpeedConfig":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, got 0")
        if self.offload_parameters and self.zero_stage < 3:
            raise ValueError(f"offload_parameters needs zero_stage 3, got {self.zero_stage}")
        return self


STRATEGIES: dict[str, type[Config]] = {"ddp": DDPConfig, "deepspeed": DeepSpeedConfig}

ModelChoice = Annotated[Config, Choice(MODELS)]
OptimizerChoice = Annotated[Config, Choice(OPTIMIZERS)]
StrategyChoice = Annotated[Config, Choice(STRATEGIES, importable=False)]
AverageChoice = Annotated[Config, Choice(AVERAGES, importable=False)]


class TrainingConfig(Config):
    """How a model is fitted."""

    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto", "full"] = Field(
        "auto", description="rows of a step over all workers; auto grows with the data, from 32 to 1024"
    )
    sampling: SamplingChoice = Field(ShuffleConfig(), description="which rows make up a step")
    loss: LossChoice = Field(
        AutoLossConfig(), description="what is minimised, as a mean over all rows of a step"
    )
    optimizer: OptimizerChoice = AdamWConfig()
    schedule: ScheduleChoice = Field(
        ConstantConfig(), description="how the learning rate changes over the fit"
    )
    l1: L1Config | None = Field(
        None,
        description="{subgradient: strength} or {proximal: strength}; not of biases, norms and embeddings",
    )
    l2: Strength = Field(
        0.0,
        description="strength / 2 x the sum of squared weights, added to the objective; not of biases, norms and embeddings",
    )
    parameter_groups: tuple[ParameterGroupConfig, ...] = Field(
        (), description="learning rate, weight decay, l1 and l2 of parameters by name"
    )
    changes: tuple[ChangeConfig, ...] = Field(
        (),
        description="other learning rates and strengths of penalties from an epoch on, as shoal tune with pbt finds them",
    )
    mixup: MixupConfig | None = None
    augment: AugmentConfig | None = Field(
        None, description="of training images: flip, and crop after padding"
    )
    averaging: AverageChoice | None = Field(
        None, description="validate and keep an average of the weights in place of the last ones"
    )
    ensemble: EnsembleChoice | None = Field(
        None, description="several fits on rows drawn by costs, or before their labels are changed by them"
    )
    precision: Literal["auto", "fp32", "fp64", "bf16", "fp16"] = Field(
        "auto",
        description="auto is fp32; bf16 and fp16 compute matrix products in it and keep weights, sums and losses in fp32",
    )
    strategy: StrategyChoice = DDPConfig()
    gradient_accumulation: Annotated[int, Field(ge=1, le=100_000)] = Field(
        1, description="a step's rows pass in this many parts, to need less memory; the result stays the same"
    )
    clip_norm: Positive | None = Field(None, description="largest norm of a step's gradient")
    non_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="where a step's gradient is no finite number: stop, or leave the step out and count it",
    )
    activation_checkpointing: StrictBool = Field(
        False,
        description="compute activations again in the backward pass, to need less memory; the result stays the same",
    )
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    checkpoint: CheckpointConfig | None = Field(CheckpointConfig(), description="null writes none")

    @model_validator(mode="after")
    def _patience_can_run(self) -> "TrainingConfig":
        stopping = self.early_stopping
        if stopping is not None and stopping.warmup >= self.epochs:
            raise ValueError(
                f"early_stopping.warmup: {stopping.warmup} leaves no epoch of epochs: {self.epochs} in which patience runs; use "
                "a smaller one, or more epochs"
            )
        return self

    @model_validator(mode="after")
    def _l1_of_groups_is_applied(self) -> "TrainingConfig":
        if self.l1 is None and any(group.l1 is not None for group in self.parameter_groups):
            raise ValueError(
                "parameter_groups have an l1, and training.l1 does not say how it is applied: give training.l1 a subgradient or "
                "a proximal strength, or leave it out of the groups"
            )
        return self

    @model_validator(mode="after")
    def _changes_what_there_is(self) -> "TrainingConfig":
        before = 1
        for i, change in enumerate(self.changes):
            where, optimizer = f"changes.{i}", type(self.optimizer).model_fields
            if change.epoch <= before and i:
                raise ValueError(
                    f"{where}.epoch: {change.epoch} does not come after {before}; put them in their order"
                )
            if change.epoch > self.epochs:
                raise ValueError(
                    f"{where}.epoch: {change.epoch} is beyond epochs: {self.epochs}; use a smaller one, or more epochs"
                )
            if change.l1 is not None and self.l1 is None:
                raise ValueError(
                    f"{where}.l1: training.l1 does not say how it is applied; give it a subgradient or a proximal strength"
                )
            for key in ("learning_rate", "weight_decay"):
                if key in change.values and key not in optimizer:
                    raise ValueError(f"{where}.{key}: this optimizer has none by that name; leave it out")
            before = change.epoch
        if self.changes and isinstance(self.optimizer, SearchConfig):
            raise ValueError(
                "changes: lbfgs and nonlinear_cg search for the optimum of one objective; use another one, or leave changes "
                "out"
            )
        if self.changes and isinstance(self.strategy, DeepSpeedConfig):
            raise ValueError(
                "changes: deepspeed cuts up once what an optimiser works on; use strategy: ddp, or leave changes out"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_mix(self) -> "TrainingConfig":
        sampled = not isinstance(self.sampling, ShuffleConfig)
        if sampled and self.mixup is not None:
            raise ValueError(
                "mixup blends rows without regard to their class or costs: use sampling: shuffle, or leave mixup out"
            )
        by_class = sampled and not isinstance(self.sampling, BootstrapConfig)
        if by_class and isinstance(self.loss, LogitAdjustedConfig):
            raise ValueError(
                "sampling and the loss logit_adjusted both correct for the shares of the classes: keep one of them"
            )
        return self

    @model_validator(mode="after")
    def _members_draw_their_rows(self) -> "TrainingConfig":
        if self.ensemble is None:
            return self
        key = f"ensemble: {Choice(ENSEMBLES).name_of(self.ensemble)}"
        if not isinstance(self.sampling, ShuffleConfig):
            raise ValueError(f"{key} draws the rows of its members itself: leave sampling out, or ensemble")
        if self.mixup is not None:
            raise ValueError(
                f"{key}: mixup blends rows without regard to how often they were drawn: leave one of them out"
            )
        return self


__all__ = [
    "AVERAGES",
    "MODELS",
    "OPTIMIZERS",
    "READS",
    "SEARCHING",
    "STRATEGIES",
    "AdadeltaConfig",
    "AdagradConfig",
    "AdamConfig",
    "AdamWConfig",
    "AugmentConfig",
    "CNNConfig",
    "ChangeConfig",
    "CheckpointConfig",
    "DDPConfig",
    "DeepSpeedConfig",
    "EMAConfig",
    "EarlyStoppingConfig",
    "EmbeddingBagConfig",
    "Imported",
    "L1Config",
    "LBFGSConfig",
    "LinearConfig",
    "MLPConfig",
    "MixupConfig",
    "ModelChoice",
    "NAdamConfig",
    "NonlinearCGConfig",
    "OptimizerChoice",
    "ParameterGroupConfig",
    "PretrainedConfig",
    "RAdamConfig",
    "RMSpropConfig",
    "SGDConfig",
    "SWAConfig",
    "SearchConfig",
    "TrainingConfig",
]
