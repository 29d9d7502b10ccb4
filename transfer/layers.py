"""The layers of a model: by name, which one answers, and in which order they lie from the head down."""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from shoal.cluster.errors import ConfigError
from shoal.training.models import Linear, Model
from shoal.training.pretrained import PretrainedBody

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Layer:
    """What is frozen, thawed and slowed together.

    Attributes
    ----------
    name
        Of its first module.
    parameters
        Names, each in one layer alone.
    """

    name: str
    parameters: frozenset[str]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern, with ``*`` and ``?`` as in file names, is that of a parameter or of a module that holds it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def matched(names: Collection[str], patterns: Iterable[str], key: str) -> frozenset[str]:
    """Return the names that patterns match.

    Raises
    ------
    ConfigError
        If one matches none: with the nearest names.
    """
    found: set[str] = set()
    for pattern in patterns:
        own = {name for name in names if matches(name, pattern)}
        if not own:
            near = difflib.get_close_matches(pattern, _with_modules(names), n=3, cutoff=0.0)
            raise ConfigError(
                f"{key}: {pattern!r} matches nothing of the model; the nearest names are {', '.join(near)}, and all are: "
                f"{', '.join(names)}"
            )
        found |= own
    return frozenset(found)


def _with_modules(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(n for name in names for n in (name.rpartition(".")[0], name)))


def head_of(model: Model, name: str | None) -> str:
    """Return the name of the module that answers: the last linear layer, unless it is named.

    Raises
    ------
    ConfigError
        If there is no such module, or it does not give as many numbers as there are outputs.
    """
    if name is not None:
        matched([n for n, _ in model.named_parameters()], [name], "transfer.head")
        return name
    if isinstance(model.body, Linear):  # its weights a number and a category are one layer
        return "body"
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear or linear[-1][1].out_features != model.n_outputs:
        raise ConfigError(
            f"transfer.head: the model has no last linear layer with {model.n_outputs} outputs; name the layer that answers"
        )
    return str(linear[-1][0])


def from_head_down(model: Model, head: str) -> list[Layer]:
    """Return the layers of a model, the head first and the embeddings of categories last.

    A layer is what the body holds at its top: an entry of a sequence or a list, or a block. Normalisations belong to the layer
    below them, and parameters of no layer to the last one.
    """
    names = [name for name, _ in model.named_parameters()]
    own = frozenset(name for name in names if matches(name, head))
    layers: list[tuple[str, set[str]]] = []
    for name, module in _units("body", model.body):
        inside = {n for n in names if matches(n, name)} - own
        if inside and layers and isinstance(module, _NORMS):
            layers[-1][1].update(inside)
        elif inside:
            layers.append((name, inside))
    rest = set(names) - own - {n for _, inside in layers for n in inside}
    if rest and any(n.startswith("encoder.") for n in rest):
        layers.insert(0, ("encoder", rest))
    elif rest and layers:
        layers[0][1].update(rest)
    elif rest:
        layers.append(("body", rest))
    found = [Layer(name, frozenset(inside)) for name, inside in reversed(layers)]
    return [Layer(head, own), *found] if own else found


def _units(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules below one that count as layers, in the order of their registration."""
    found = []
    for child_name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        whole = f"{name}.{child_name}"
        inner = [c for c in child.children() if any(True for _ in c.parameters())]
        holds_alone = len(inner) == 1 and not any(True for _ in child.parameters(recurse=False))
        holds_layers = isinstance(child, nn.Sequential | nn.ModuleList) or isinstance(module, PretrainedBody)
        if inner and (holds_layers or holds_alone):
            found += _units(whole, child)
        else:
            found.append((whole, child))
    return found


def frozen_batch_norms(model: nn.Module, trained: Collection[str]) -> frozenset[str]:
    """Return the names of batch normalisations that are not trained: by their own parameters, or those of the layer before."""
    found, before = set(), ""
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            before = name
        if isinstance(module, BATCH_NORMS) and before and not any(matches(p, before) for p in trained):
            found.add(name)
    return frozenset(found)
