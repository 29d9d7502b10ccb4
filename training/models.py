"""A model: the input encoder, then a body; prepared tensors in, logits out.

Shape legend: B rows, D numeric features, C categorical columns, E encoded features, K outputs.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from shoal.cluster.components import Choice, Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import FIRST_CATEGORY, Schema
from shoal.training.config import (
    MODELS,
    READS,
    CNNConfig,
    EmbeddingBagConfig,
    LinearConfig,
    MLPConfig,
    PretrainedConfig,
)
from shoal.training.media import NAMES, Media, refuse_unread
from shoal.training.media_models import media_body
from shoal.training.pretrained import pretrained_body
from shoal.training.users_code import users

Factory = Callable[..., nn.Module]
INPUTS = ("numeric", "categorical", "encoded", *NAMES)  # what a body may name


def recompute_activations(module: nn.Module) -> int:
    """Keep few activations and compute the others again in the backward pass; return in how many places.

    An outermost `nn.Sequential` of n entries keeps those between about sqrt(n) segments (Chen et al. 2016, "Training Deep
    Nets with Sublinear Memory Cost", section 4.1); each block of an outermost `nn.ModuleList` keeps its input.
    """
    if isinstance(module, nn.Sequential) and len(module) > 2:
        segments = max(2, math.isqrt(len(module)))
        module.forward = partial(checkpoint_sequential, module, segments, use_reentrant=False)  # type: ignore[method-assign]
        return 1
    if isinstance(module, nn.ModuleList):
        blocks = [b for b in module if any(True for _ in b.children())]
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        return len(blocks)
    return sum(recompute_activations(child) for child in module.children())


def can_recompute(module: nn.Module) -> bool:
    """Whether `recompute_activations` finds a place."""
    return any(
        (isinstance(m, nn.Sequential) and len(m) > 2)
        or (isinstance(m, nn.ModuleList) and any(any(True for _ in b.children()) for b in m))
        for m in module.modules()
    )


def embedding_width(cardinality: int) -> int:
    """Return the usual width of a column's embedding, min(50, (n + 1) // 2)."""
    return min(50, (cardinality + 1) // 2)


class InputEncoder(nn.Module):
    """Missing values filled, indicators added, categories embedded.

    The shards hold standardised numbers, so a missing one is filled with 0, the training mean. The embeddings
    of "missing" and "unknown" start at zero: until the data teach them otherwise, they say nothing.
    """

    def __init__(self, schema: Schema, embedding: int | str | None = "auto") -> None:
        super().__init__()
        indicators: list[int] = []
        start = 0
        for column in schema.numeric:
            if column.has_missing:
                indicators.append(start)
            start += column.width
        self.n_numeric = start
        self.register_buffer("indicators", torch.tensor(indicators, dtype=torch.int64), persistent=False)
        self.has_indicators = bool(indicators)
        self.media = Media(schema) if schema.media else None
        self.n_codes = len(schema.categorical)
        widths = (
            []
            if embedding is None
            else [
                embedding_width(c.cardinality) if embedding == "auto" else int(embedding)
                for c in schema.categorical
            ]
        )
        self.embeddings = nn.ModuleList(
            nn.Embedding(c.cardinality, width) for c, width in zip(schema.categorical, widths, strict=False)
        )
        for table in self.embeddings:
            assert isinstance(table, nn.Embedding)
            nn.init.zeros_(table.weight[:FIRST_CATEGORY].detach())
        self.numeric_width = start + len(indicators)
        self.width = self.numeric_width + sum(widths)

    indicators: Tensor

    def fill(self, numeric: Tensor) -> Tensor:
        """Turn prepared numbers ``[B, D]`` with NaN into ``[B, D + indicators]`` without."""
        filled = torch.nan_to_num(numeric, nan=0.0)
        if not self.has_indicators:
            return filled
        missing = torch.isnan(numeric[:, self.indicators]).to(numeric.dtype)
        return torch.cat([filled, missing], dim=1)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Encode ``[B, D]`` floats and ``[B, C]`` codes as ``[B, E]``; texts and images are not in it."""
        parts = [self.fill(numeric)] if self.numeric_width else []
        parts += [table(codes) for table, codes in zip(self.embeddings, categorical.unbind(1), strict=False)]
        if not parts:
            return numeric.new_zeros(len(numeric), 0)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Model(nn.Module):
    """The input encoder and a body behind it.

    The body gets ``[B, E]``, or, where its ``forward`` names ``numeric`` and ``categorical``, the filled numbers
    ``[B, D]`` and the codes ``[B, C]``, and where it names ``image`` or ``text`` what of `INPUTS` it names; it returns logits
    ``[B, K]``.

    Attributes
    ----------
    beside
        A module that is trained along and is no part of what is kept: it is told something of the step, and answers beside the
        logits.
    """

    is_estimator = False  # of scikit-learn's

    def __init__(self, encoder: InputEncoder, body: nn.Module, n_outputs: int) -> None:
        super().__init__()
        self.encoder, self.body, self.n_outputs = encoder, body, n_outputs
        self.by_type = takes_types(body)
        self.beside: nn.Module | None = None
        self.asks = asked_of(body) if self.by_type else frozenset()

    def forward(
        self,
        numeric: Tensor,
        categorical: Tensor,
        share: float = 1.0,
        others: tuple[Tensor, Tensor] | None = None,
        told: Any = None,
    ) -> Any:
        """Return logits ``[B, K]`` for prepared inputs ``[B, D]`` and ``[B, C]``.

        With ``others``, as many prepared inputs, the body sees ``share`` of each encoded row and the rest of another. With
        ``told``, return a tuple: the logits, and what the module beside gives.
        """
        with users("the model's forward"):
            logits = (
                self._logits(numeric, categorical)
                if others is None
                else self._blended(numeric, categorical, share, others)
            )
        if logits.shape != (len(numeric), self.n_outputs):
            raise ConfigError(
                f"the model returned shape {tuple(logits.shape)}; it must return {(len(numeric), self.n_outputs)}: one "
                "row an input row, one logit an output"
            )
        if told is not None and self.beside is not None:
            return (logits, *self.beside(logits, told))
        return logits

    def _logits(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        if self.by_type:
            found: Tensor = self.body(**self._by_type(numeric, categorical))
        else:
            found = self.body(self.encoder(numeric, categorical))
        return found

    def _by_type(self, numeric: Tensor, codes: Tensor) -> dict[str, Tensor]:
        given: dict[str, Tensor] = {}
        if "numeric" in self.asks:
            given["numeric"] = self.encoder.fill(numeric)
        if "categorical" in self.asks:
            given["categorical"] = codes[:, : self.encoder.n_codes]
        if "encoded" in self.asks:
            given["encoded"] = self.encoder(numeric, codes)
        if self.encoder.media is not None:
            media = self.encoder.media(codes, numeric.dtype)
            given |= {name: tensor for name, tensor in media.items() if name in self.asks}
        return given

    def _blended(
        self, numeric: Tensor, categorical: Tensor, share: float, others: tuple[Tensor, Tensor]
    ) -> Tensor:
        both = self.encoder(torch.cat([numeric, others[0]]), torch.cat([categorical, others[1]]))
        own, other = both.chunk(2)
        found: Tensor = self.body(share * own + (1.0 - share) * other)
        return found


def asked_of(body: nn.Module) -> frozenset[str]:
    """Return which of `INPUTS` a body's ``forward`` names."""
    return frozenset(INPUTS) & set(inspect.signature(body.forward).parameters)


def takes_types(body: nn.Module) -> bool:
    """Whether a body asks for tensors by name: ``numeric`` and ``categorical``, an ``image`` or a ``text``."""
    asked = asked_of(body)
    return {"numeric", "categorical"} <= asked or bool(asked & {"image", "text"})


class OneHotWeights(nn.Embedding):
    """Weights of one-hot columns, looked up: unlike the embeddings of a deeper model, they are what a penalty is for."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``[B, C, K]`` of codes ``[B, C]``."""
        # The gradient of narrow rows is several times as fast as by an embedding's backward pass, and the same to the bit.
        return torch.index_select(self.weight, 0, input.flatten()).view(*input.shape, -1)


class Linear(nn.Module):
    """A weight a number and a weight a category: the same as linear regression on one-hot columns."""

    def __init__(self, n_numeric: int, cardinalities: list[int], n_outputs: int) -> None:
        super().__init__()
        self.numbers = nn.Linear(n_numeric, n_outputs)
        self.categories = OneHotWeights(sum(cardinalities), n_outputs) if cardinalities else None
        first = torch.tensor([sum(cardinalities[:i]) for i in range(len(cardinalities))], dtype=torch.int64)
        self.register_buffer("first", first, persistent=False)
        nn.init.zeros_(self.numbers.weight)
        nn.init.zeros_(self.numbers.bias)
        if self.categories is not None:
            nn.init.zeros_(self.categories.weight)

    first: Tensor

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Return ``[B, K]``."""
        logits: Tensor = self.numbers(numeric)
        if self.categories is not None:
            logits = logits + self.categories(categorical + self.first).sum(1)
        return logits


def mlp(width: int, config: MLPConfig, n_outputs: int) -> nn.Sequential:
    """Build Linear, ReLU and dropout for each hidden width, then the output layer."""
    layers: list[nn.Module] = []
    for hidden in config.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, n_outputs))


def build_model(config: Config, schema: Schema, seed: int, factory: Factory | None = None) -> Model:
    """Build a model with weights that depend on the seed alone.

    Parameters
    ----------
    config
        The chosen component of the `model` section.
    schema
        Columns and target of the sharded dataset.
    seed
        Root of the initial weights; the process-wide random state is left as it was.
    factory
        The user's own factory, in place of the one that an imported component names.

    Raises
    ------
    ConfigError
        If the user's factory cannot be imported, refuses its arguments, or gives neither an `nn.Module` nor a scikit-learn
        estimator that fits the target.
    """
    n_outputs = schema.target.n_outputs
    with torch.random.fork_rng(devices=[]), _memory_named(config):
        torch.manual_seed(seed)
        if isinstance(config, PretrainedConfig):
            encoder = InputEncoder(schema)
            return Model(encoder, pretrained_body(config, schema, encoder.width, n_outputs), n_outputs)
        if not isinstance(config, Imported):
            name = str(Choice(MODELS).name_of(config))
            refuse_unread(schema, frozenset({READS[name]} if name in READS else ()), f"model: {name}")
        if isinstance(config, CNNConfig | EmbeddingBagConfig):
            encoder = InputEncoder(schema)
            return Model(encoder, media_body(config, schema, encoder.width, n_outputs), n_outputs)
        if isinstance(config, LinearConfig):
            encoder = InputEncoder(schema, embedding=None)
            cardinalities = [c.cardinality for c in schema.categorical]
            return Model(encoder, Linear(encoder.numeric_width, cardinalities, n_outputs), n_outputs)
        encoder = InputEncoder(schema, config.embedding if isinstance(config, MLPConfig) else "auto")
        if isinstance(config, MLPConfig):
            return Model(encoder, mlp(encoder.width, config, n_outputs), n_outputs)
        assert isinstance(config, Imported)
        if factory is None:
            from shoal.training.scikit.model import EstimatorModel, estimator_of  # it is a Model, too

            estimator = estimator_of(config)
            if estimator is not None:
                refuse_unread(schema, frozenset(), f"model.import: {config.path}")
                return EstimatorModel(estimator, schema, config.path)
        body = _user_body(config, factory or config.load(), schema, encoder.width, n_outputs)
        refuse_unread(schema, asked_of(body), f"model.import: {config.path}")
        if takes_types(body) and "encoded" not in asked_of(body):  # embeddings of ours would be dead weights
            encoder = InputEncoder(schema, embedding=None)
        model = Model(encoder, body, n_outputs)
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(
                f"model.import: {config.path} has no parameter to train; give it layers, or leave requires_grad on"
            )
        return model


@contextmanager
def _memory_named(config: Config) -> Iterator[None]:
    """Say of a model that does not fit into memory that it is the model."""
    try:
        yield
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        what = f"model.mlp.hidden: {list(config.hidden)}" if isinstance(config, MLPConfig) else "this model"
        raise ConfigError(
            f"{what} needs more memory than there is; make it smaller, or use a larger machine"
        ) from error


def _user_body(config: Imported, factory: Factory, schema: Schema, width: int, n_outputs: int) -> nn.Module:
    offered: dict[str, Any] = {"schema": schema, "n_outputs": n_outputs, "n_inputs": width}
    try:
        parameters = inspect.signature(factory).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            offered = {name: value for name, value in offered.items() if name in parameters}
        with users(f"model.import: {config.path}", ConfigError):
            body = factory(**offered, **config.kwargs)
    except TypeError as error:
        raise ConfigError(
            f"model.import: {config.path} could not be called: {error}; it gets schema, n_outputs and n_inputs where it "
            "names them, and the keys written beside import"
        ) from error
    if not isinstance(body, nn.Module):
        raise ConfigError(
            f"model.import: {config.path} returned {type(body).__name__}; it must return a torch.nn.Module, or an estimator of "
            "scikit-learn's"
        )
    if lazy := [n for n, p in body.named_parameters() if is_lazy(p)]:
        raise ConfigError(
            f"model.import: {config.path} has layers that take their size from the first rows ({lazy[0]}): give them a size, "
            "such as n_inputs, which the factory gets where it names it"
        )
    return body
