"""`sampling_strategy`: how many rows of each class are wanted, as imbalanced-learn reads it."""

from typing import Any, Literal

import numpy as np

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.imbalance.rows import Index
from shoal.cluster.sharding.manifest import Target
from shoal.cluster.sharding.names import nearest

Kind = Literal["over-sampling", "under-sampling", "clean-sampling"]


def targets(
    key: str, strategy: str | float | dict[str, int], kind: Kind, counts: Index, target: Target, private: bool
) -> dict[int, int]:
    """Return what a sampler has to do to each class.

    Parameters
    ----------
    key
        Where it is written.
    strategy
        As written in the experiment.
    kind
        What the sampler does.
    counts
        Training rows of each class, int64 ``[classes]``.
    target
        For the class names.
    private
        Whether the class names may be said.

    Returns
    -------
    Class code to rows to make (over-sampling), rows to keep (under-sampling), or anything (clean-sampling: the classes whose
    rows may go). In the order of the codes.

    Raises
    ------
    ConfigError
        If the strategy does not fit the sampler or the classes.
    """
    from imblearn.utils import check_sampling_strategy

    if isinstance(strategy, dict):
        names = [str(name) for name in target.classes]
        for name in strategy:
            if name not in names:
                near = "" if private else nearest(name, names)
                raise ConfigError(f"{key}: there is no class {name!r}{near}")
        by_code = {names.index(name): n for name, n in strategy.items()}
        _require_possible(key, by_code, kind, counts, names, private)
    labels = np.repeat(np.arange(len(counts)), counts)
    try:
        found: dict[Any, Any] = check_sampling_strategy(
            by_code if isinstance(strategy, dict) else strategy, labels, kind
        )
    except ValueError as error:
        if isinstance(strategy, float) and len(counts) == 2:
            least, most = sorted(int(n) for n in counts)
            raise ConfigError(
                f"{key}: {strategy:g} is the ratio of the smaller to the larger class after "
                f"resampling, and it is {least / most:.4g} already; give a larger ratio, up to 1"
            ) from error
        raise ConfigError(_explained(key, strategy, kind, len(counts))) from error
    return {int(code): int(found[code]) for code in sorted(found)}


def _require_possible(
    key: str, wanted: dict[int, int], kind: Kind, counts: Index, names: list[str], private: bool
) -> None:
    for code, n in wanted.items():
        name = f"class number {code + 1}" if private else names[code]
        there = int(counts[code])
        if kind == "over-sampling" and n < there:
            raise ConfigError(
                f"{key}: {name}: {n:,} rows are wanted and {there:,} are there; an over-sampler takes "
                "none away: ask for at least as many, or leave the class out"
            )
        if kind == "under-sampling" and n > there:
            raise ConfigError(
                f"{key}: {name}: {n:,} rows are wanted and {there:,} are there; an under-sampler "
                "makes none: ask for at most as many, or leave the class out"
            )


def _explained(key: str, strategy: object, kind: Kind, classes: int) -> str:
    if isinstance(strategy, float):
        return f"{key}: {strategy:g}: a ratio is for two classes, and there are {classes}; give the rows wanted of each class"
    if kind == "over-sampling":
        return f"{key}: {strategy} cannot be over-sampled: there is nothing to catch up with; use auto, minority or not majority"
    return f"{key}: {strategy} cannot be under-sampled: it is the measure of the others; use auto, majority or not minority"
