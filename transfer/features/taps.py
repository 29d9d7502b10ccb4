"""Taps on a model: the outputs of chosen layers, pooled to numbers a row.

Shape legend: B rows, T tokens, C channels, F numbers a row.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.cluster.errors import ConfigError
from shoal.training.models import Model

Pool = Literal["auto", "mean", "max", "first", "flatten"]
LAST = "last"  # what the layer that answers is given
_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
_IDLE = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Identity")


@dataclass(frozen=True)
class Layer:
    """A layer that can be tapped.

    Attributes
    ----------
    name, kind
        Of the module.
    shape
        Of its output for a row, without B.
    width
        F, once pooled.
    parameters
        Its own and those of the modules in it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    width: int
    parameters: int


def pooled(output: Tensor, pool: Pool, channels_first: bool = False) -> Tensor:
    """Turn a layer's output ``[B, …]`` into ``[B, F]``.

    ``[B, F]`` stays as it is. ``mean`` and ``max`` are over the tokens of ``[B, T, C]``, and over the places of ``[B, C, H, W]``
    and its like, or of ``[B, C, L]`` where that is said; ``first`` is the first token or place. ``auto`` is mean.
    """
    if output.dim() <= 2:
        return output.reshape(len(output), -1)
    if pool == "flatten":
        return output.flatten(1)
    tokens = output.dim() == 3 and not channels_first
    if pool == "first":
        return output[:, 0] if tokens else output.flatten(2)[:, :, 0]
    places = (1,) if tokens else tuple(range(2, output.dim()))
    return output.amax(dim=places) if pool == "max" else output.mean(dim=places)


def has_channels_first(module: nn.Module) -> bool:
    """Whether a layer's output is ``[B, C, …]``: what it ends in is a convolution or normalises batches."""
    last = [inner for inner in module.modules() if any(True for _ in inner.parameters(recurse=False))][-1:]
    return bool(last) and isinstance(last[0], _CHANNELS_FIRST)


def names_of(model: nn.Module) -> list[str]:
    """Return the names of a model's modules, but for those that change nothing where nothing is trained: dropout, identity."""
    return [
        name for name, module in model.named_modules() if name and not type(module).__name__.endswith(_IDLE)
    ]


def chosen(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the layers that patterns, with ``*`` and ``?``, match, in the model's order; ``last`` is one of its own.

    Raises
    ------
    ConfigError
        If one matches none, with the nearest names.
    """
    names = names_of(model)
    found = {LAST} if LAST in patterns else set()
    for pattern in patterns:
        own = {name for name in names if fnmatchcase(name, pattern)}
        if not own and pattern != LAST:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ConfigError(
                f"transfer.features.layers: {pattern!r} matches no layer; the nearest are {', '.join(near)}; "
                "shoal features CONFIG --list shows all"
            )
        found |= own
    return [name for name in (*names, LAST) if name in found]


def layers_of(model: Model, head: str, pool: Pool, rows: tuple[Tensor, Tensor]) -> list[Layer]:
    """Return every layer whose output is numbers for each row, from a pass of some rows ``[B, D]`` and ``[B, C]``."""
    modules, found = dict(model.named_modules()), []
    with tapped(model, names_of(model), head) as outputs:
        with torch.inference_mode():
            model(*rows)
        for name, output in outputs.items():
            if output is None or output.shape[:1] != rows[0].shape[:1] or output.dim() < 2:
                continue
            size = sum(p.numel() for p in modules[name].parameters())
            width = pooled(output, pool, has_channels_first(modules[name])).shape[1]
            found.append(Layer(name, type(modules[name]).__name__, tuple(output.shape[1:]), width, size))
    return found


@contextmanager
def tapped(model: Model, names: Sequence[str], head: str) -> Iterator[Mapping[str, Tensor | None]]:
    """Keep what chosen layers give in each pass, in a table that the next pass writes over.

    Parameters
    ----------
    names
        Of modules; ``last`` for what ``head`` is given.
    head
        Name of the module that answers.
    """
    modules, outputs = dict(model.named_modules()), dict.fromkeys(names)

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            outputs[name] = tensor_of(output)

        return hook

    def before(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        outputs[LAST] = tensor_of(arguments)

    with ExitStack() as stack:
        for name in names:
            handle = (
                modules[head].register_forward_pre_hook(before)
                if name == LAST
                else modules[name].register_forward_hook(keep(name))
            )
            stack.callback(handle.remove)
        yield outputs


def tensor_of(output: Any) -> Tensor | None:
    """Return the tensor of floats among what a layer returned: itself, the last hidden state, or the first of several."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        state = output.get("last_hidden_state")
        several: Sequence[Any] = [state] if state is not None else list(output.values())
    else:
        several = list(output) if isinstance(output, tuple | list) else []
    return next((found for one in several if (found := tensor_of(one)) is not None), None)
