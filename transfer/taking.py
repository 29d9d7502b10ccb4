"""Which weights of a start a new model takes, and which it does not and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import FIRST_CATEGORY, Column, Schema
from shoal.cluster.sharding.names import listed, plural
from shoal.training.models import Model
from shoal.transfer.config import TransferConfig
from shoal.transfer.layers import matches
from shoal.transfer.start import Start

_BODY = "body."  # where the user's own module, whose weights a file may hold, is in the model
_EMBEDDINGS = "encoder.embeddings."


@dataclass
class Taken:
    """What became of a model's tensors.

    Attributes
    ----------
    names
        Those that were taken.
    left
        Those that were not, by the reason.
    unused
        Tensors of the start that nothing took.
    renamed
        What the names of the start were given in front; empty where they were left as they are.
    """

    names: list[str] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    renamed: str = ""

    def leave(self, name: str, why: str) -> None:
        """Note that a tensor is not taken."""
        self.left.setdefault(why, []).append(name)

    def said(self, place: str) -> str:
        """Return a line on what was taken."""
        total = len(self.names) + sum(map(len, self.left.values()))
        text = f"start: {len(self.names)} of {plural(total, 'tensor')} of the model are taken from {place}"
        if self.renamed:
            text += f" (its names with {self.renamed!r} in front)"
        text += "".join(f"; not {listed(names, 4)}: {why}" for why, names in self.left.items())
        if self.unused:
            text += f"; the start's {listed(self.unused, 4)}: of no use here"
        return text


def answers_the_same(start: Start, schema: Schema) -> bool:
    """Whether a start's outputs mean what those of a new model do: the same classes, or the same number in the same units."""
    if start.schema is None:
        return False
    there, here = start.schema.target, schema.target
    if there.task != here.task:
        return False
    if here.task != "regression":
        return there.classes == here.classes
    return (there.columns, there.center, there.scale) == (here.columns, here.center, here.scale)


@torch.no_grad()
def take(model: Model, start: Start, schema: Schema, head: str, config: TransferConfig) -> Taken:
    """Copy the tensors of a start into a model, by name and shape.

    Parameters
    ----------
    model
        Changed in place.
    start
        What to take from.
    schema
        Of the rows that the model is to be trained on.
    head
        Name of the module that answers.
    config
        Whether the head is new, and how names differ.

    Raises
    ------
    ConfigError
        If nothing is taken, or the weights do not belong to these columns.
    """
    if start.schema is not None:
        _refuse_other_columns(model, start.schema, schema)
    own = model.state_dict()
    weights, renamed = _renamed(start.weights, list(own), config.rename)
    same = answers_the_same(start, schema) if config.new_head == "auto" else not config.new_head
    why_new = "a new head, as transfer.new_head says"
    if config.new_head == "auto":
        why_new = "a new head, for the start answers another question" + (
            "" if start.schema else ", or may do (transfer.new_head: false takes it)"
        )
    taken = Taken(unused=[name for name in weights if name not in own], renamed=renamed)
    for name, tensor in own.items():
        given = weights.get(name)
        if matches(name, head) and not same:
            taken.leave(name, why_new)
        elif given is None:
            taken.leave(name, "not in the start")
        elif (rows := _category_rows(name, start, schema)) is not None and given.shape[1:] == tensor.shape[
            1:
        ]:
            here, there = rows
            tensor[here] = given[there].to(tensor.dtype)
            taken.names.append(name)
        elif given.shape != tensor.shape:
            taken.leave(name, f"{list(tensor.shape)} here and {list(given.shape)} there")
        else:
            tensor.copy_(given)
            taken.names.append(name)
    if not set(taken.names) & {name for name, _ in model.named_parameters()}:
        _refuse_nothing(start, weights, taken)
    return taken


def _refuse_nothing(start: Start, weights: Mapping[str, Tensor], taken: Taken) -> None:
    if start.model:
        fix = f"the model there is {start.model}: write model: so"
    else:
        shapes = listed((f"{name} {list(t.shape)}" for name, t in weights.items()), 4)
        fix = f"there are {shapes}: where only names differ, give transfer.rename, such as {{'backbone.': 'body.'}}"
    reasons = "; ".join(f"{listed(names, 4)}: {why}" for why, names in taken.left.items())
    raise ConfigError(f"transfer.start: nothing of {start.place} fits this model ({reasons}); {fix}")


def _renamed(
    weights: Mapping[str, Tensor], own: list[str], rename: Mapping[str, str]
) -> tuple[Mapping[str, Tensor], str]:
    """Give a start's tensors the model's names: as asked, as they are, or as those of the body."""
    if rename:
        changed = {}
        for name, tensor in weights.items():
            old = next((old for old in rename if name.startswith(old)), None)
            changed[name if old is None else rename[old] + name[len(old) :]] = tensor
        unused = [old for old in rename if not any(name.startswith(old) for name in weights)]
        if unused:
            raise ConfigError(
                f"transfer.rename: no name in the start begins with {unused[0]!r}; there are {listed(weights, 6)}"
            )
        return changed, ""
    below = {_BODY + name: tensor for name, tensor in weights.items()}
    if len(set(below) & set(own)) > len(set(weights) & set(own)):
        return below, _BODY
    return weights, ""


def _refuse_other_columns(model: Model, there: Schema, here: Schema) -> None:
    """Refuse columns that a start's first layer would take for others; they are the same where its statistics are taken."""
    numbers = [(c.name, c.parts, c.has_missing) for c in there.numeric]
    categories = [c.name for c in there.categorical]
    if numbers != [(c.name, c.parts, c.has_missing) for c in here.numeric] or categories != [
        c.name for c in here.categorical
    ]:
        raise ConfigError(
            "transfer.statistics: data leaves other columns than those that the start reads "
            f"({_difference(there.columns, here.columns)}); use statistics: start"
        )
    for one in there.media:
        other = next((c for c in here.media if c.name == one.name), None)
        if other is None or other.tokens != one.tokens or other.gives != one.gives:
            raise ConfigError(
                f"transfer.statistics: data gives {one.name!r} another tokenizer or size than the start's, which its weights "
                "expect; use statistics: start, or the same data.types"
            )
    same = [c.categories for c in there.categorical] == [c.categories for c in here.categorical]
    if not same and not model.encoder.embeddings:
        raise ConfigError(
            "transfer.statistics: data finds other categories than the start's, to which its weights belong; use "
            "statistics: start"
        )


def _difference(there: tuple[Column, ...], here: tuple[Column, ...]) -> str:
    names, own = [c.name for c in there], [c.name for c in here]
    if gone := [n for n in names if n not in own]:
        return f"{listed(gone, 3)} not here"
    if more := [n for n in own if n not in names]:
        return f"{listed(more, 3)} not there"
    return "in another order, or with missing values in others"


def _category_rows(name: str, start: Start, schema: Schema) -> tuple[list[int], list[int]] | None:
    """Return which rows of an embedding here are which rows there, where the two have other categories."""
    if start.schema is None or not name.startswith(_EMBEDDINGS):
        return None
    i = int(name.removeprefix(_EMBEDDINGS).partition(".")[0])
    there, here = start.schema.categorical[i].categories, schema.categorical[i].categories
    if there == here:
        return None
    known = {value: FIRST_CATEGORY + row for row, value in enumerate(there)}
    pairs = [(FIRST_CATEGORY + row, known[value]) for row, value in enumerate(here) if value in known]
    pairs = [(row, row) for row in range(FIRST_CATEGORY)] + pairs
    return [row for row, _ in pairs], [row for _, row in pairs]
