"""Rows to explain: a draw of a run's held-out rows, or of other data, prepared as the model takes them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shoal.cluster.errors import ConfigError, CorruptShardError, DataError, StorageError
from shoal.cluster.progress import Reporter
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.names import plural
from shoal.cluster.sharding.prepare import Prepared, prepare
from shoal.cluster.sharding.targets import encode_labels
from shoal.cluster.storage import Storage
from shoal.evaluation.explain.trained import packed
from shoal.evaluation.explain.work import SAMPLE, draws
from shoal.experiment import Experiment
from shoal.training.artifact import TrainedModel
from shoal.training.costs import Amounts, by_name
from shoal.verbs.judge import rows_of
from shoal.verbs.predictions import identity_column
from shoal.verbs.rows import input_files, raw_batches
from shoal.verbs.runs import provenance_of

_BYTES = 512 << 20  # of cells, at most: rows with images are many times as wide as others


@dataclass(frozen=True)
class Drawn:
    """Rows in the order in which they lie.

    Parameters
    ----------
    part
        ``test``, ``validation`` or ``data``.
    cells, labels, ids, amounts
        Of each row; labels are None where nothing is judged.
    numbers
        int64 ``[n]``, of the rows in their part or file.
    """

    part: str
    cells: NDArray[np.int32]
    labels: NDArray[Any] | None
    ids: pa.Array
    amounts: Amounts
    numbers: NDArray[np.int64]


@dataclass(frozen=True)
class _Block:
    cells: NDArray[np.int32]
    labels: NDArray[Any] | None
    ids: pa.Array
    costs: NDArray[np.float64]
    numbers: NDArray[np.int64]

    def take(self, rows: NDArray[np.intp]) -> "_Block":
        labels = None if self.labels is None else self.labels[rows]
        return _Block(
            self.cells[rows], labels, self.ids.take(pa.array(rows)), self.costs[rows], self.numbers[rows]
        )


def own_rows(
    run: RunFolder, experiment: Experiment, trained: TrainedModel, costs: Sequence[str], reporter: Reporter
) -> Drawn:
    """Draw held-out rows of the run, from its shards.

    Raises
    ------
    ConfigError
        If the run has no such rows.
    StorageError
        If the shards are gone or damaged.
    """
    manifest, settings = rows_of(run), experiment.evaluation.explain
    sizes = {str(name): part.rows for name, part in manifest.splits.items()}
    held = [name for name in ("test", "validation") if sizes.get(name)]
    if settings.part != "auto" and settings.part not in held:
        raise ConfigError(
            f"evaluation.explain.part: the run has no {settings.part} rows"
            + (f"; it has {' and '.join(held)} rows" if held else "; give labelled rows with --data")
        )
    if not held:
        raise ConfigError("the run has no rows that it was not fitted to (data.split); give some with --data")
    part = held[0] if settings.part == "auto" else settings.part
    uri = provenance_of(run)["data"]["path"]
    gone = (
        f"the prepared rows of the run ({uri}) are not there any more; shoal shard with the run's config.yaml makes them "
        "again, or give rows with --data"
    )
    folder = Storage.open(uri, experiment.cluster.storage)
    cache = experiment.cluster.cache_path
    try:
        dataset = ShardedDataset.open(folder, cache=None if cache is None else Path(cache))
    except DataError as error:
        raise StorageError(gone if folder.is_local else str(error)) from error
    if dataset.manifest.key != manifest.key:
        raise StorageError(gone)
    names, calibrating = manifest.schema_.costs, trained.calibration.columns

    def blocks() -> Iterable[_Block]:
        start = 0
        for v in range(dataset.n_shards):
            try:
                rows = dataset.shard(part, v)
            except CorruptShardError as error:
                raise StorageError(str(error)) from error
            amounts = by_name(rows.cost, names)
            cells = packed(Prepared(rows.numeric, rows.categorical), amounts, calibrating)
            wanted = _columns(amounts, costs, len(rows))
            yield _Block(
                cells, np.array(rows.label), rows.row_id, wanted, np.arange(start, start + len(rows))
            )
            start += len(rows)

    return _drawn(part, blocks(), settings.sample, costs, experiment.seed, reporter, sizes[part])


def rows_of_data(
    trained: TrainedModel,
    data: str | Sequence[str],
    experiment: Experiment,
    costs: Sequence[str],
    reporter: Reporter,
    *,
    labels: bool,
) -> Drawn:
    """Draw rows of Parquet or CSV files.

    Parameters
    ----------
    costs
        Cost columns that decisions follow.
    labels
        Whether their labels are needed.

    Raises
    ------
    DataError
        If the data lack a column or a label, or are empty.
    """
    config = experiment.cluster.storage
    files = input_files(data, config)
    trained = trained.reading(files, config)
    schema, calibrating = trained.schema, trained.calibration.columns
    wanted = tuple(sorted({*costs, *calibrating}))
    private = bool(set(schema.target.columns) & set(schema.private))
    reporter.stage("reading")

    def blocks() -> Iterable[_Block]:
        start = 0
        for batch in raw_batches(files, schema, labels=labels, costs=wanted):
            if not batch.num_rows:
                continue
            amounts = trained.amounts(batch, wanted)
            yield _Block(
                packed(prepare(batch, schema), amounts, calibrating),
                encode_labels(batch, schema.target, private=private) if labels else None,
                identity_column(trained, batch, start)[1].combine_chunks(),
                _columns(amounts, costs, batch.num_rows),
                np.arange(start, start + batch.num_rows),
            )
            start += batch.num_rows

    settings = experiment.evaluation.explain
    found = _drawn("data", blocks(), settings.sample, costs, experiment.seed, reporter)
    if not len(found.cells):
        raise DataError(
            f"{data if isinstance(data, str) else ', '.join(data)} holds no rows; nothing to explain"
        )
    return found


def _columns(amounts: Amounts, names: Sequence[str], rows: int) -> NDArray[np.float64]:
    return np.stack([amounts[name] for name in names], axis=1) if names else np.empty((rows, 0))


def _drawn(
    part: str,
    blocks: Iterable[_Block],
    most: int,
    costs: Sequence[str],
    seed: int,
    reporter: Reporter,
    there: int = 0,
) -> Drawn:
    """Keep the rows with the smallest of random keys, so that no more than two blocks are in memory beside them."""
    generator = np.random.default_rng(draws(seed, SAMPLE))
    kept: _Block | None = None
    keys = np.empty(0)
    read = 0
    for block in blocks:
        read += len(block.cells)
        most = min(most, max(2, _BYTES // max(1, 4 * block.cells.shape[1])))
        keys = np.concatenate([keys, generator.random(len(block.cells))])
        kept = block if kept is None else _joined(kept, block)
        if len(keys) > most:
            best = np.sort(np.argpartition(keys, most)[:most])
            kept, keys = kept.take(best), keys[best]
        reporter.advance(read, max(read, there), "rows")
    reporter.done()
    if kept is None:
        return Drawn(part, np.empty((0, 0), np.int32), None, pa.array([]), {}, np.empty(0, np.int64))
    if read > len(kept.cells):
        reporter.notice(
            f"{plural(len(kept.cells), 'row')} of {read:,} are drawn to explain by (evaluation.explain.sample)"
        )
    return Drawn(part, kept.cells, kept.labels, kept.ids, by_name(kept.costs, costs), kept.numbers)


def _joined(first: _Block, second: _Block) -> _Block:
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = np.concatenate([first.labels, second.labels])
    return _Block(
        np.concatenate([first.cells, second.cells]),
        labels,
        pa.concat_arrays([first.ids, second.ids]),
        np.concatenate([first.costs, second.costs]),
        np.concatenate([first.numbers, second.numbers]),
    )
