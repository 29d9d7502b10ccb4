"""The `model` and `training` sections, and the registries that their components come from."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from shoal.cluster.components import Choice, Imported
from shoal.cluster.config import Config, Duration

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class MLPConfig(Config):
    """Fully connected layers over standardised numbers and embedded categories."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128, 128)
    dropout: Probability = 0.0
    embedding: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="width of each column's embedding; auto: min(50, (categories + 1) // 2)"
    )


class LinearConfig(Config):
    """Linear or logistic regression: a weight a number, a weight a category."""


MODELS: dict[str, type[Config]] = {"mlp": MLPConfig, "linear": LinearConfig}


class SGDConfig(Config):
    """Stochastic gradient descent (`torch.optim.SGD`)."""

    learning_rate: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    dampening: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    nesterov: StrictBool = False


class AdamConfig(Config):
    """Adam (`torch.optim.Adam`; Kingma and Ba 2015). Its weight decay is an L2 penalty."""

    learning_rate: Positive = 1e-3
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    amsgrad: StrictBool = False


class AdamWConfig(AdamConfig):
    """AdamW, with decoupled weight decay (`torch.optim.AdamW`; Loshchilov and Hutter 2019)."""

    weight_decay: NonNegative = 0.01


OPTIMIZERS: dict[str, type[Config]] = {"sgd": SGDConfig, "adam": AdamConfig, "adamw": AdamWConfig}


class EarlyStoppingConfig(Config):
    """Stop when the validation score has not improved by more than `min_delta` for `patience` epochs."""

    patience: Annotated[int, Field(ge=1)] = 5
    min_delta: NonNegative = Field(
        1e-6, description="margin of an improvement; keeps float noise from deciding"
    )
    restore_best: StrictBool = True


class CheckpointConfig(Config):
    """Resumable state, so that a killed run goes on where it was."""

    every: Duration = Field(timedelta(minutes=10), description="time between checkpoints")
    keep: Annotated[int, Field(ge=1)] = Field(2, description="how many to keep")


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
OptimizerChoice = Annotated[Config, Choice(OPTIMIZERS, importable=False)]
StrategyChoice = Annotated[Config, Choice(STRATEGIES, importable=False)]


class TrainingConfig(Config):
    """How a model is fitted."""

    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto", "full"] = Field(
        "auto", description="rows of a step over all workers; auto grows with the data, from 32 to 1024"
    )
    optimizer: OptimizerChoice = AdamWConfig()
    precision: Literal["auto", "fp32", "fp64", "bf16", "fp16"] = Field(
        "auto",
        description="auto is fp32; bf16 and fp16 compute matrix products in it and keep weights, sums and losses in fp32",
    )
    strategy: StrategyChoice = DDPConfig()
    gradient_accumulation: Annotated[int, Field(ge=1)] = Field(
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


__all__ = [
    "MODELS",
    "OPTIMIZERS",
    "STRATEGIES",
    "AdamConfig",
    "AdamWConfig",
    "CheckpointConfig",
    "DDPConfig",
    "DeepSpeedConfig",
    "EarlyStoppingConfig",
    "Imported",
    "LinearConfig",
    "MLPConfig",
    "ModelChoice",
    "OptimizerChoice",
    "SGDConfig",
    "TrainingConfig",
]
