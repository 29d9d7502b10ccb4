"""What is explained: a matrix of cells that may be exchanged, and a function that answers for its rows.

Shape legend: n rows, P cells of a row, w cells of a raw column, K outputs, m values.

A raw column may be several cells (the parts of a time stamp, the pixels of an image), and cells are of any type that a matrix
holds; an explainer only ever moves a column's cells from row to row, or puts those of a value there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shoal.cluster.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Cells = NDArray[Any]
Floats = NDArray[np.float64]
Predict = Callable[[Cells], Floats]
Positions = tuple[int, ...]


def _as_they_are(_: str, values: Sequence[Any]) -> Cells:
    return np.asarray(values)[:, None]


@dataclass(frozen=True)
class Subject:
    """A model, as explainers see it.

    Parameters
    ----------
    predict
        Cells ``[n, P]`` to float64 ``[n, K]``; a row's answer depends on its own cells alone.
    columns
        The positions of each raw column's cells.
    outputs
        Names of the K outputs.
    encode
        Name of a raw column, and m of its values, to cells ``[m, w]``.
    """

    predict: Predict
    columns: Mapping[str, Positions]
    outputs: tuple[str, ...] = ("prediction",)
    encode: Callable[[str, Sequence[Any]], Cells] = field(default=_as_they_are)

    def positions(self, names: str | Sequence[str]) -> Positions:
        """Return where the cells of a column, or of several together, are.

        Raises
        ------
        ConfigError
            For a name that is none of the columns.
        """
        found: list[int] = []
        for name in (names,) if isinstance(names, str) else names:
            if name not in self.columns:
                raise ConfigError(
                    f"{name!r} is none of the columns {', '.join(self.columns)}; name one of them"
                )
            found += self.columns[name]
        return tuple(found)


def of_function(
    predict: Callable[[Cells], Any], columns: Sequence[str], outputs: Sequence[str] = ("prediction",)
) -> Subject:
    """Explain a function of a matrix ``[n, P]`` with one column a feature; it returns ``[n]`` or ``[n, K]``."""
    return Subject(Wide(predict), {name: (i,) for i, name in enumerate(columns)}, tuple(outputs))


@dataclass(frozen=True)
class Wide:
    """A function whose answers are float64 ``[n, K]``, also where the one it wraps gives ``[n]``."""

    function: Callable[[Any], Any]

    def __call__(self, rows: Any) -> Floats:
        """Answer for rows."""
        found = np.asarray(self.function(rows), dtype=np.float64)
        return found[:, None] if found.ndim == 1 else found


def of_estimator(estimator: Any, columns: Sequence[str] | None = None) -> Subject:
    """Explain a fitted scikit-learn estimator of a numeric matrix.

    The outputs are the classes' probabilities, of two classes that of the second; or the predictions of a regressor.
    """
    names = columns if columns is not None else [f"x{i}" for i in range(estimator.n_features_in_)]
    predict, outputs = _answers(estimator)
    return of_function(predict, names, outputs)


def _answers(estimator: Any) -> tuple[Callable[[Any], Any], tuple[str, ...]]:
    if not hasattr(estimator, "predict_proba"):
        return estimator.predict, ("prediction",)
    classes = [str(c) for c in estimator.classes_]
    if len(classes) == 2:
        return _Event(estimator), (classes[1],)
    return estimator.predict_proba, tuple(classes)


@dataclass(frozen=True)
class _Event:
    """The probability of the second class."""

    estimator: Any

    def __call__(self, rows: Any) -> Floats:
        return np.asarray(self.estimator.predict_proba(rows)[:, 1])


def of_module(module: "nn.Module", columns: Sequence[str], outputs: Sequence[str] = ("output",)) -> Subject:
    """Explain an `nn.Module` of a float matrix ``[n, P]``, which answers ``[n]`` or ``[n, K]``; it is set to evaluation mode."""
    return of_function(_Forward(module.eval()), columns, outputs)


@dataclass(frozen=True)
class _Forward:
    """A module's answers, in blocks of bounded memory."""

    module: "nn.Module"

    def __call__(self, rows: Cells) -> Any:
        import torch

        first = next(self.module.parameters(), torch.empty(0))
        with torch.inference_mode():
            blocks = [
                self.module(torch.from_numpy(np.array(rows[s : s + 4096])).to(first)).cpu().numpy()
                for s in range(0, max(1, len(rows)), 4096)
            ]
        return np.concatenate(blocks)


def of_frame(estimator: Any, frame: "pd.DataFrame") -> tuple[Subject, Cells]:
    """Explain a fitted scikit-learn estimator, such as a pipeline, that takes data frames with columns of any type.

    Returns
    -------
    The subject, and the cells int64 ``[n, P]`` of the frame's rows: numbers of rows, whose values are looked up.
    """
    predict, outputs = _answers(estimator)
    book = _Lookup(predict, {str(name): frame[name] for name in frame.columns})
    names = list(book.values)
    cells = np.tile(np.arange(len(frame))[:, None], len(names))
    return Subject(book, {name: (i,) for i, name in enumerate(names)}, outputs, book.encode), cells


@dataclass
class _Lookup:
    """Rows put together from cells that are numbers of values."""

    predict: Callable[[Any], Any]
    values: "dict[str, pd.Series[Any]]"

    def __call__(self, cells: Cells) -> Floats:
        import pandas as pd

        columns = {
            name: series.take(cells[:, i]).reset_index(drop=True)
            for i, (name, series) in enumerate(self.values.items())
        }
        return Wide(self.predict)(pd.DataFrame(columns))

    def encode(self, name: str, values: Sequence[Any]) -> Cells:
        import pandas as pd

        before = self.values[name]
        more = pd.Series(list(values)).astype(before.dtype)
        self.values[name] = pd.concat([before, more], ignore_index=True)
        return np.arange(len(before), len(before) + len(values))[:, None]
