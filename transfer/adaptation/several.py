"""Several models that label target rows for each other: co-training and tri-training, as one module of members.

Shape legend: M members, N target rows, K classes; b source rows and c target rows of this worker in a step, O outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_selection import mutual_info_classif
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema
from shoal.training.batches import Dataset
from shoal.training.draws import combine
from shoal.training.ensembles.model import EnsembleModel
from shoal.training.losses.build import Loss
from shoal.training.models import Model
from shoal.training.sampling.bootstrap import times
from shoal.training.scores import Judge
from shoal.training.strategies.base import Strategy
from shoal.training.two_domains import Sides
from shoal.transfer.adaptation.config import CoTrainingConfig, RoundsConfig, TriTrainingConfig
from shoal.transfer.adaptation.methods import Method
from shoal.transfer.adaptation.reading import by_class
from shoal.transfer.adaptation.self_training import NONE, sure_labels
from shoal.transfer.adaptation.weights import Weighted

_VIEW_ROWS = 5_000  # by which columns are dealt to two views
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def agreed(first: Floats, second: Floats, confidence: float) -> Labels:
    """Return the class on which two members agree, both as sure as asked, -1 elsewhere, of probabilities ``[N, K]``."""
    answer, other = first.argmax(1), second.argmax(1)
    sure = np.minimum(np.round(first.max(1), 6), np.round(second.max(1), 6)) >= confidence
    return np.where((answer == other) & sure, answer, NONE).astype(np.int64)


def kept_of(error: float, before: float, labels: Labels, n_before: int, seed: int) -> tuple[Labels, bool]:
    """Decide whether a member takes the labels that two others give it: the third of tri-training's conditions.

    Parameters
    ----------
    error, before
        Of the two where they agree, on labelled rows: now, and when labels were last taken.
    labels
        Of now, ``[N]``.
    n_before
        Labels when they were last taken; 0 for never.
    seed
        Of the draw, where too many are left out.

    Returns
    -------
    The labels, some of them left out, and whether to take them.

    References
    ----------
    Zhou and Li (2005), "Tri-training: exploiting unlabeled data using three classifiers", equations 8 to 10 and figure 1.
    """
    n = int((labels >= 0).sum())
    if not error < before:
        return labels, False
    least = n_before or int(error / (before - error) + 1)
    if n <= least:
        return labels, False
    if error * n < before * least:
        return labels, True
    if least <= error / (before - error):
        return labels, False
    kept = int(np.ceil(before * least / error - 1))
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    given = np.flatnonzero(labels >= 0)
    cut = np.full_like(labels, NONE)
    chosen = draw.permutation(given)[:kept]
    cut[chosen] = labels[chosen]
    return cut, True


def two_views(columns: Sequence[str], owner: Sequence[str], information: Floats) -> tuple[set[str], set[str]]:
    """Deal columns to two views that tell about as much: the most informative first, to the one that has less.

    Parameters
    ----------
    columns
        Their names.
    owner
        Of each number, the column that it is of; ``information`` is what each tells about the class.
    """
    told = dict.fromkeys(columns, 0.0)
    for name, value in zip(owner, information, strict=True):
        told[name] += float(value)
    views: tuple[set[str], set[str]] = (set(), set())
    sums = [0.0, 0.0]
    for name in sorted(columns, key=lambda name: (-told[name], name)):
        less = int(sums[1] < sums[0] or (sums[1] == sums[0] and len(views[1]) < len(views[0])))
        views[less].add(name)
        sums[less] += told[name]
    return views


def encoded_owner(model: Model, schema: Schema) -> list[str]:
    """Return, of each number that the encoder gives, the column that it is of."""
    numbers = [c.name for c in schema.numeric for _ in range(c.width)]
    indicators = [numbers[i] for i in model.encoder.indicators.tolist()]
    widths = [table.embedding_dim for table in model.encoder.embeddings if isinstance(table, nn.Embedding)]
    codes = [c.name for c, width in zip(schema.categorical, widths, strict=True) for _ in range(width)]
    return [*numbers, *indicators, *codes]


def restrict(model: Model, schema: Schema, view: set[str]) -> None:
    """Let a model see some columns alone: its first layer has no weights for the others, and never gets any.

    Raises
    ------
    ConfigError
        If its body does not begin with a linear layer of the encoded columns.
    """
    first = model.body[0] if isinstance(model.body, nn.Sequential) else None
    if not isinstance(first, nn.Linear) or first.in_features != model.encoder.width:
        raise ConfigError(
            "transfer.adaptation: co_training shows each of two models some columns, by the weights of a first linear layer, and "
            "this model begins with none; use model: mlp"
        )
    seen = torch.tensor([name in view for name in encoded_owner(model, schema)])
    first.weight.data *= seen.to(first.weight.dtype)
    first.weight.register_hook(lambda g: g * seen.to(g.device, g.dtype))  # type: ignore[no-untyped-call]


class Several(Method):
    """Members that learn the source's rows, and the labels that the others give to target rows.

    Parameters
    ----------
    model
        Of the members.
    source, unlabelled
        The rows of both domains.
    config
        How labels are given.
    epochs, seed
        Of the fit.
    """

    def __init__(
        self,
        model: EnsembleModel,
        source: Dataset,
        unlabelled: Dataset,
        config: RoundsConfig,
        epochs: int,
        seed: int,
    ) -> None:
        super().__init__(model, unlabelled, None)
        self.config, self.epochs, self.seed = config, epochs, seed
        self.source, self.rows = source, unlabelled
        self.first = min(epochs - 1, round(config.start * epochs))
        m, n = len(model.members), sum(unlabelled.shard_rows("train"))
        self.labels = torch.full((m, n), NONE, dtype=torch.int64)
        self.errors = torch.full((m,), 0.5, dtype=torch.float64)  # when labels were last taken
        self.given = torch.zeros(m, dtype=torch.int64)
        self._loss: Loss | None = None
        model.beside = _Members()

    def weighted(self, loss: Loss) -> Loss:
        """Return the mixture's loss, without a gradient: what members learn is in `share`."""
        self._loss = loss
        weights = loss.weights
        own = None if weights is None else (lambda labels, costs: weights(labels, self._own_costs(costs)))
        return replace(loss, values=lambda z, y: loss.values(z.detach(), y), weights=own)

    def _own_costs(self, costs: Tensor) -> Tensor:
        """Return the cost columns without those of the bootstrap."""
        drawn = len(self.labels) if isinstance(self.config, TriTrainingConfig) else 0
        return costs[:, : costs.shape[1] - drawn]

    def begin(self, epoch: int, model: Model, strategy: Strategy) -> None:
        """Give labels anew where a round begins."""
        rounds = epoch - self.first
        if rounds < 0 or rounds % self.config.every:
            return
        assert isinstance(model, EnsembleModel)
        model.eval()
        target = self.rows.schema.target
        scores = [Judge(self.rows, strategy, target)(member, "train") for member in model.members]
        errors = None
        if isinstance(self.config, TriTrainingConfig):
            judged = [Judge(self.source, strategy, target)(member, "train") for member in model.members]
            if judged[0] is not None:
                known = [by_class(one.score).argmax(1) for one in judged if one is not None]
                errors = [_joint_error(known, judged[0].label, i) for i in range(len(known))]
        found = None
        if scores[0] is not None:
            wide = [by_class(one.score) for one in scores if one is not None]
            found = self._exchanged(wide, rounds, errors)
        labels, kept_errors, given = strategy.broadcast(found)
        self.labels, self.errors, self.given = (torch.from_numpy(a) for a in (labels, kept_errors, given))

    def _exchanged(
        self, scores: list[Floats], rounds: int, errors: list[float] | None
    ) -> tuple[Any, Any, Any]:
        """Return each member's labels ``[M, N]``, the errors at which they were taken, and how many there are."""
        labels, kept, given = (
            self.labels.numpy().copy(),
            self.errors.numpy().copy(),
            self.given.numpy().copy(),
        )
        if isinstance(self.config, CoTrainingConfig):
            done = (rounds + 1) / max(1, self.epochs - self.first)
            for i in range(2):
                labels[i] = sure_labels(scores[1 - i], self.config.share * done, self.config.confidence, True)
        else:
            assert errors is not None
            for i in range(3):
                one, two = (j for j in range(3) if j != i)
                offered = agreed(scores[one], scores[two], self.config.confidence)
                seed = combine(self.seed, 17, i, rounds) % 2**32
                taken, yes = kept_of(errors[i], float(kept[i]), offered, int(given[i]), seed)
                if yes:
                    labels[i], kept[i], given[i] = taken, errors[i], int((taken >= 0).sum())
        given = (labels >= 0).sum(1)
        return labels, kept, given

    def told(self, progress: float, rows: int) -> float:  # noqa: ARG002
        """Ask for the members' answers."""
        return progress

    def share(self, outputs: tuple[Tensor, ...], sides: Sides) -> Tensor:
        """Return this worker's share of the members' losses, their mean over the members that learn."""
        assert self._loss is not None
        n, members, total = len(sides.labels), outputs[1], outputs[1].new_zeros(())
        for i, logits in enumerate(members.to(outputs[0].dtype)):
            losses = self._loss.values(logits[:n], sides.labels) * sides.weights
            if isinstance(self.config, TriTrainingConfig):
                losses = losses * sides.costs[:, sides.costs.shape[1] - len(members) + i].to(losses.dtype)
            total = total + losses.sum() / sides.n_source
            own = self.labels[i][sides.rows].to(logits.device)
            wide = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
            guessed = cross_entropy(wide[n:], own.clamp_min(0), reduction="none")
            total = total + (guessed * (own >= 0)).sum() / sides.n_target
        return total

    def state(self) -> dict[str, Tensor]:
        """Return the labels that were given, and what the next ones are compared with."""
        return {"labels": self.labels, "errors": self.errors, "given": self.given}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        self.labels, self.errors, self.given = (state[name].clone() for name in ("labels", "errors", "given"))

    def finish(self) -> tuple[str, ...]:
        """Say how many labels were given."""
        name = "co-training" if isinstance(self.config, CoTrainingConfig) else "tri-training"
        counts = ", ".join(f"{n:,}" for n in self.given.tolist())
        said = f"{name}: the models had {counts} labels of each other's on {self.labels.shape[1]:,} target rows in the last round"
        return (*super().finish(), said)


class _Members(nn.Module):
    """Gives the answers of each member, which the mixture keeps from its pass."""

    def forward(self, _: Tensor, __: Any, members: Tensor) -> tuple[Tensor]:
        """Return ``[M, n, O]``."""
        return (members,)


def _joint_error(answers: Sequence[NDArray[np.intp]], labels: NDArray[Any], member: int) -> float:
    """Return how often the two others are wrong where they agree; 0.5 where they never do."""
    one, two = (answers[j] for j in range(3) if j != member)
    same = one == two
    return float((one[same] != labels[same]).mean()) if same.any() else 0.5


def several(
    config: RoundsConfig, members: list[Model], source: Dataset, unlabelled: Dataset, epochs: int, seed: int
) -> tuple[EnsembleModel, Several, Dataset]:
    """Return members as one model, the method, and the source's rows with what each member draws of them.

    Raises
    ------
    ConfigError
        If columns cannot be dealt to two views.
    """
    rows = source
    if isinstance(config, CoTrainingConfig):
        for member, view in zip(members, views_of(config, source, seed), strict=True):
            restrict(member, source.schema, view)
    else:
        shards = [source.shard("train", v) for v in range(source.n_shards)]
        drawn = [
            np.stack([times(s, combine(seed, 19, i) % 2**32) for i in range(len(members))], 1).astype(
                np.float64
            )
            for s in shards
        ]
        rows = Weighted(source, drawn)
    model = EnsembleModel(members)
    return model, Several(model, source, unlabelled, config, epochs, seed), rows


def views_of(config: CoTrainingConfig, source: Dataset, seed: int) -> tuple[set[str], set[str]]:
    """Return the columns of each view.

    Raises
    ------
    ConfigError
        If a pattern matches no column, or there are fewer than two.
    """
    schema = source.schema
    names = [c.name for c in (*schema.numeric, *schema.categorical)]
    if config.views != "auto":
        found = []
        for patterns in config.views:
            own = {name for name in names if any(fnmatchcase(name, p) for p in patterns)}
            if missing := [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]:
                raise ConfigError(
                    f"transfer.adaptation: co_training.views: {missing[0]!r} matches no feature column; there are "
                    f"{', '.join(names[:20])}"
                )
            found.append(own)
        return found[0], found[1]
    if len(names) < 2:
        raise ConfigError(
            "transfer.adaptation: co_training needs two groups of columns, and there is one column; use tri_training"
        )
    shards = [source.shard("train", v) for v in range(source.n_shards)]
    share = max(1, _VIEW_ROWS // len(shards))
    numbers = np.concatenate([np.nan_to_num(s.numeric[:share]) for s in shards])
    codes = np.concatenate([s.categorical[:share, : len(schema.categorical)] for s in shards])
    labels = np.concatenate([s.label[:share] for s in shards])
    discrete = np.repeat([False, True], [numbers.shape[1], codes.shape[1]])
    information = mutual_info_classif(
        np.column_stack([numbers, codes]), labels, discrete_features=discrete, random_state=seed
    )
    owner = [c.name for c in schema.numeric for _ in range(c.width)] + [c.name for c in schema.categorical]
    return two_views(names, owner, information)
