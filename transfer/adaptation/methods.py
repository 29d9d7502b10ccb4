"""Methods at work in the steps of a fit: a `training.two_domains.Adaptation` each.

Shape legend: b source rows and c target rows of this worker; F numbers a row at the aligned layer, K classes.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema
from shoal.training.batches import Dataset
from shoal.training.losses.build import Loss
from shoal.training.models import Linear, Model
from shoal.training.strategies.base import Strategy
from shoal.training.two_domains import Sides
from shoal.transfer.adaptation.alignment import (
    certainty,
    class_confusion,
    class_probabilities,
    conditioned,
    coral,
    discriminator,
    domain_losses,
    reverse_gradient,
    squared_mmd,
)
from shoal.transfer.adaptation.batch_norm import PerDomain, batch_norms
from shoal.transfer.adaptation.config import (
    AdversarialConfig,
    AlignmentConfig,
    CDANConfig,
    DeepCORALConfig,
    MCCConfig,
    MMDConfig,
)
from shoal.transfer.adaptation.weights import Weights
from shoal.transfer.features.taps import has_channels_first, pooled, tensor_of
from shoal.transfer.layers import head_of, matched

_MOST_NUMBERS = 1 << 14  # that a discriminator of outputs and probabilities sees a row


class Method:
    """What all methods share; by itself it leaves the objective to the source's rows and their weights.

    Parameters
    ----------
    model
        What is trained.
    unlabelled
        The target's rows; None where no step needs them.
    weights
        Of the source's rows; None for 1 each.
    batch_norm
        As in `InStepConfig`.
    """

    def __init__(
        self,
        model: Model,
        unlabelled: Dataset | None,
        weights: Weights | None,
        batch_norm: Literal["shared", "per_domain", "frozen"] = "shared",
    ) -> None:
        self.model, self._unlabelled, self._weights = model, unlabelled, weights
        self._per_domain = PerDomain(model) if batch_norm == "per_domain" else None
        self.still = (
            frozenset(name for name, _ in batch_norms(model)) if batch_norm == "frozen" else frozenset()
        )

    @property
    def unlabelled(self) -> Dataset | None:
        """The target's rows."""
        return self._unlabelled

    def weighted(self, loss: Loss) -> Loss:
        """Return the loss with the weights that source rows have."""
        return loss if self._weights is None else self._weights.on(loss)

    def begin(self, epoch: int, model: Model, strategy: Strategy) -> None:
        """Hear of an epoch."""

    def share(self, outputs: tuple[Tensor, ...], sides: Sides) -> Tensor:
        """Return this worker's share of what the step's rows add to the objective: nothing."""
        del sides
        return outputs[0].new_zeros(())

    def stepped(self, position: int) -> None:
        """Hear that so many steps are done."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold beside weights."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""

    def told(self, progress: float, rows: int) -> Any:  # noqa: ARG002
        """Return what the module beside the model is told in a step."""
        if self._per_domain is not None:
            self._per_domain.rows = rows
        return None

    def finish(self) -> tuple[str, ...]:
        """Leave the model as its config builds it."""
        if self._per_domain is not None:
            self._per_domain.remove()
        self.model.beside = None
        return ()


class Tap(nn.Module):
    """Gives a layer's outputs ``[n, F]``, and what a discriminator says of them, ``[n, 1]`` or ``[n, D + 1]``.

    Parameters
    ----------
    model
        Whose layer it is.
    layer
        Its name; None for what the layer that answers is given.
    schema
        Of the rows, to find the width F by a pass of two.
    """

    def __init__(self, model: Model, layer: str | None, schema: Schema) -> None:
        super().__init__()
        self._seen: Tensor | None = None
        modules = dict(model.named_modules())
        if layer is None:
            head = head_of(model, None)
            if isinstance(modules[head], Linear):
                raise ConfigError(
                    "transfer.adaptation: model: linear has no layer below the one that answers, so nothing can be aligned; use "
                    "mlp, or a method that weighs rows (importance_weighting, bbse)"
                )
            self._hook = modules[head].register_forward_pre_hook(self._before)
        else:
            matched([n for n, _ in model.named_parameters()], [layer], "transfer.adaptation: layer")
            self._channels_first = has_channels_first(modules[layer])
            self._hook = modules[layer].register_forward_hook(self._after)
        was = model.training
        model.eval()
        dtype = next(p.dtype for p in model.parameters())
        with torch.no_grad():
            model(
                torch.zeros(2, schema.numeric_width, dtype=dtype),
                torch.zeros(2, schema.codes_width, dtype=torch.int32),
            )
        model.train(was)
        self.width = self.features().shape[1]
        self.discriminator: nn.Module | None = None
        self.conditional = False

    def _before(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        found = tensor_of(arguments)
        self._seen = None if found is None else pooled(found, "auto")

    def _after(self, _: nn.Module, __: Any, output: Any) -> None:
        found = tensor_of(output)
        self._seen = None if found is None else pooled(found, "auto", self._channels_first)

    def features(self) -> Tensor:
        """Return what the layer gave in the last pass."""
        if self._seen is None:
            raise ConfigError("transfer.adaptation: layer gives no numbers for each row; name another one")
        return self._seen

    def forward(self, logits: Tensor, strength: float) -> tuple[Tensor, ...]:
        """Return the outputs ``[n, F]``, and where there is a discriminator its logits; both at full precision."""
        with torch.autocast(logits.device.type, enabled=False):
            features, logits = self.features(), logits
            if features.dtype not in (torch.float32, torch.float64):
                features, logits = features.float(), logits.float()
            if self.discriminator is None:
                return (features,)
            seen = (
                conditioned(features, class_probabilities(logits).detach()) if self.conditional else features
            )
            return features, self.discriminator(reverse_gradient(seen, strength))

    def remove(self) -> None:
        """Leave the layer alone."""
        self._hook.remove()


class Alignment(Method):
    """Makes a layer's outputs alike in both domains, by the term that its config names.

    Of several source domains each is made like the target: distances are means over the source's rows, and a discriminator tells
    all of them apart (Schoenauer-Sebag et al. 2019, "Multi-domain adversarial learning").
    """

    def __init__(
        self,
        model: Model,
        source: Schema,
        unlabelled: Dataset,
        weights: Weights | None,
        config: AlignmentConfig,
        seed: int,
    ) -> None:
        super().__init__(model, unlabelled, weights, config.batch_norm)
        self.config = config
        self.domain, self.sources = len(source.costs), max(1, len(source.domains))  # its place, and how many
        self.tap = Tap(model, config.layer, unlabelled.schema)
        if isinstance(config, AdversarialConfig):
            width = self.tap.width
            if isinstance(config, CDANConfig):
                self.tap.conditional = True
                width *= max(2, model.n_outputs)
                if width > _MOST_NUMBERS:
                    raise ConfigError(
                        f"transfer.adaptation: cdan sees {self.tap.width} outputs times {max(2, model.n_outputs)} classes, more "
                        f"than {_MOST_NUMBERS:,} numbers a row: align a narrower layer, or use dann"
                    )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.tap.discriminator = discriminator(width, config.hidden, self.sources)
        model.beside = self.tap

    def told(self, progress: float, rows: int) -> float:
        """Return the strength of the reversed gradient (Ganin et al. 2016, section 5.2.2)."""
        super().told(progress, rows)
        if not isinstance(self.config, AdversarialConfig):
            return 0.0
        ramp = self.config.ramp
        return self.config.weight * (2.0 / (1.0 + math.exp(-ramp * progress)) - 1.0 if ramp else 1.0)

    def share(self, outputs: tuple[Tensor, ...], sides: Sides) -> Tensor:
        """Return this worker's share of the alignment."""
        n = len(sides.labels)
        if isinstance(self.config, AdversarialConfig):
            return self._adversarial(outputs[0], outputs[2], n, sides)
        source, target = sides.source(outputs[1][:n]), sides.target(outputs[1][n:])
        weights = sides.source(sides.weights.to(source.dtype))
        if self.sources == 1:
            term = self._distance(source, target, weights)
        else:
            domain, term = sides.source(self._domain_of(sides)), source.new_zeros(())
            for d in range(self.sources):
                own = domain == d
                if (rows := int(own.sum())) > 1:  # one row has no covariance
                    distance = self._distance(source[own], target, weights[own])
                    term = term + rows / sides.n_source * distance
        return self.config.weight * term / sides.workers

    def _distance(self, source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        if isinstance(self.config, DeepCORALConfig):
            return coral(source, target, weights)
        assert isinstance(self.config, MMDConfig)
        return squared_mmd(source, target, weights, self.config.kernels)

    def _domain_of(self, sides: Sides) -> Tensor:
        """Return the number of each source row's domain, int64 ``[b]``; -1 for rows that were made and are of none."""
        if self.sources == 1:
            return torch.zeros(len(sides.labels), dtype=torch.int64, device=sides.labels.device)
        return sides.costs[:, self.domain].nan_to_num(-1.0).long()

    def _adversarial(self, logits: Tensor, domain: Tensor, n: int, sides: Sides) -> Tensor:
        """Return this worker's share of the mean, over domains, of the discriminator's mean loss on their rows."""
        weights, of = (
            torch.ones_like(domain[:, 0]),
            torch.full_like(domain[:, 0], self.sources, dtype=torch.int64),
        )
        weights[:n], of[:n] = sides.weights.to(domain.dtype), self._domain_of(sides)
        if isinstance(self.config, CDANConfig) and self.config.entropy:
            weights = weights * certainty(class_probabilities(logits.to(domain.dtype))).detach()
        weights, of = torch.where(of < 0, 0.0, weights), of.clamp_min(0)
        own = torch.zeros(self.sources + 1, dtype=torch.float64, device=domain.device)
        total = sides.sum(own.index_add(0, of, weights.double())).to(domain.dtype)
        share = weights / torch.where(total > 0, total, 1.0)[of]
        return (share * domain_losses(domain, of)).sum() / (total > 0).sum()

    def finish(self) -> tuple[str, ...]:
        """Leave the model as its config builds it."""
        self.tap.remove()
        return super().finish()


class ClassConfusion(Method):
    """Makes the model decide between classes on the target's rows."""

    def __init__(self, model: Model, unlabelled: Dataset, config: MCCConfig) -> None:
        super().__init__(model, unlabelled, None, config.batch_norm)
        self.config = config

    def share(self, outputs: tuple[Tensor, ...], sides: Sides) -> Tensor:
        """Return this worker's share of the confusion."""
        logits = sides.target(outputs[0][len(sides.labels) :])
        return self.config.weight * class_confusion(logits, self.config.temperature) / sides.workers
