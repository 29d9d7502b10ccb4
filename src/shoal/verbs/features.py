"""features: what the layers of a model give for rows, as Parquet, and which layer says most."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from shoal.cluster.components import Imported, load_imported
from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Part, Shape, plan
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import SPLITS, Schema
from shoal.cluster.sharding.names import plural
from shoal.experiment import Experiment, given, to_dict
from shoal.training.config import ModelChoice
from shoal.transfer.config import TransferConfig
from shoal.verbs.dataset import shard
from shoal.verbs.provenance import Stages, provenance
from shoal.verbs.runs import PROVENANCE, claimed, run_uri
from shoal.verbs.starting import transfer_of
from shoal.verbs.writable import require_cache

if TYPE_CHECKING:
    from shoal.cluster.sharding.spread import Spread
    from shoal.evaluation.metrics import Metric
    from shoal.transfer.features.extract import Source
    from shoal.transfer.features.probe import Probed
    from shoal.transfer.features.taps import Layer

_TASK_MEMORY = 512 << 20  # bytes of a task, beyond which Ray is not told


@dataclass(frozen=True)
class FeaturesResult:
    """The layers with what their probes scored, best first, and how many rows were written."""

    run: str
    rows: dict[str, int]
    layers: list[dict[str, Any]]
    sentence: str
    seconds: dict[str, float]
    was_complete: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LayersResult:
    """The layers that could be chosen."""

    layers: "list[Layer]"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"layers": [asdict(layer) for layer in self.layers]}


def features(
    experiment: Experiment | str | Path,
    out: str | None = None,
    *,
    name: str | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> FeaturesResult:
    """Write what chosen layers give for every row, and rank them by a linear model of each.

    The features are in ``RUN/features/``, a Parquet file a shard, with the rows' ids, parts and labels; each is written whole,
    and the same command writes what is missing.

    Parameters
    ----------
    experiment
        Its `transfer.features` says which layers; the model is that of `transfer.start`, or of `model`.
    out
        The run folder.
    name
        What the folder's name begins with; by default the experiment file's stem.
    reporter
        Hears of progress.
    command
        What to write down as the command.

    Raises
    ------
    ShoalError
        With the cause and the fix: `RequestError` before anything was written, `RunError` afterwards.
    """
    reporter = reporter or Silent()
    experiment, name = given(experiment, name)
    load_imported(experiment, experiment.training)
    shape, _ = plan(experiment.cluster)
    require_cache(experiment.cluster, shape)
    experiment, known, sha256 = _tapping(experiment)
    run = RunFolder.open(run_uri(experiment, "features", name, out), experiment.cluster.storage)
    identity = to_dict(experiment) | {"weights": sha256}
    with claimed(run, identity, reporter, "metrics.json") as heard:
        if run.is_complete:
            heard.notice(f"this run is complete; nothing is computed again. Delete {run.uri} to repeat it")
            found = run.read_json("metrics.json")
            return FeaturesResult(run.uri, **found, was_complete=True)
        return _features(experiment, run, name, shape, known, sha256, heard, command)


def layers(experiment: Experiment | str | Path, *, reporter: Reporter | None = None) -> LayersResult:
    """List the layers of the model whose output is numbers for each row; the data are looked at, nothing is written.

    Raises
    ------
    ShoalError
        As `features`.
    """
    import torch

    from shoal.transfer.features.taps import layers_of
    from shoal.verbs.look import look

    experiment, _ = given(experiment)
    load_imported(experiment, experiment.training)
    experiment, known, sha256 = _tapping(experiment)
    schema = known
    if schema is None:
        schema = look(
            experiment.data, experiment.seed, experiment.cluster.storage, reporter or Silent()
        ).schema
    source = _source(experiment, schema, sha256)
    model, head = source.build()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    rows = (
        torch.zeros(2, schema.numeric_width, dtype=dtype),
        torch.zeros(2, schema.codes_width, dtype=torch.int32),
    )
    return LayersResult(layers_of(model, head, source.transfer.features.pool, rows))


def _tapping(experiment: Experiment) -> tuple[Experiment, Schema | None, str]:
    """Settle which model is tapped; return the experiment with it, the schema that it expects, and a hash of its weights."""
    from shoal.training.scikit.unused import names_estimator
    from shoal.transfer.start import read_start

    config = transfer_of(experiment) or TransferConfig()
    if config.start is None:
        if not isinstance(experiment.model, Imported):
            raise ConfigError(
                "transfer.start: a new model's weights are draws, and so would its features be: give a run folder or a file of "
                "weights, or a model of your own by import that comes with some"
            )
        if names_estimator(experiment.model):
            raise ConfigError(f"model.import: {experiment.model.path} is scikit-learn's and has no layers")
        return experiment.model_copy(update={"transfer": config}), None, ""
    start = read_start(config.start, experiment.cluster.storage)
    if start.schema is None:  # the head is as good as any layer, where it fits
        config = config.model_copy(update={"new_head": False})
        return experiment.model_copy(update={"transfer": config}), None, start.sha256
    config = config.model_copy(update={"new_head": False, "statistics": "start"})
    model = TypeAdapter(ModelChoice).validate_python(start.model)
    return experiment.model_copy(update={"transfer": config, "model": model}), start.schema, start.sha256


def _source(experiment: Experiment, schema: Schema, sha256: str) -> "Source":
    from shoal.transfer.features.extract import Source

    assert experiment.transfer is not None
    config = experiment.transfer
    return Source(experiment.model, schema, experiment.seed, config, experiment.cluster.storage, sha256)


def _features(
    experiment: Experiment,
    run: RunFolder,
    name: str,
    shape: Shape,
    known: Schema | None,
    sha256: str,
    reporter: Reporter,
    command: Sequence[str] | None,
) -> FeaturesResult:
    from shoal.evaluation.metrics import resolve_scoring
    from shoal.transfer.features.extract import Extract, path_of
    from shoal.transfer.features.probe import Probe
    from shoal.transfer.features.taps import chosen

    assert experiment.transfer is not None
    config, stages = experiment.transfer.features, Stages(reporter)
    with stages.stage("shard", "sharding"):
        data = shard(experiment, name=name, reporter=reporter, verify=False)
    manifest, target = data.manifest, data.manifest.schema_.target
    metric = resolve_scoring(experiment.evaluation.scoring, target.task)[0]
    if config.probe and not manifest.splits["validation"].rows:
        raise ConfigError(
            "transfer.features.probe: there are no validation rows to rank layers on; set data.split: {validation: …}, or "
            "transfer.features.probe: false"
        )
    source = _source(experiment, known or manifest.schema_, sha256)
    model, _ = source.build()
    names = chosen(model, config.layers)
    cpus = None if shape.placement == "inline" else shape.cpus_per_worker
    work = Extract(
        source,
        tuple(names),
        config.pool,
        data.uri,
        run.uri,
        experiment.cluster.cache_path,
        cpus,
        shape.gpus_per_worker,
    )
    pieces = [(str(split), v) for split in SPLITS for v in range(manifest.n_shards)]
    todo = [piece for piece in pieces if not run.exists(path_of(*piece))]
    if len(todo) < len(pieces):
        reporter.notice(f"{plural(len(pieces) - len(todo), 'shard')} of {len(pieces)} are there already")
    rows = {str(split): part.rows for split, part in manifest.splits.items()}
    with _spread(experiment, shape, len(todo) or 1, reporter) as spread:
        with stages.stage("extract", f"features of {plural(len(names), 'layer')}"):
            done = sum(rows.values()) - sum(_rows_of(data.manifest, todo))
            for count in spread.map(work, todo):
                done += count
                reporter.advance(done, sum(rows.values()), "rows")
            reporter.done()
        probed = []
        if config.probe:
            with stages.stage("probe", f"probing {plural(len(names), 'layer')}"):
                probe = Probe(run.uri, experiment.cluster.storage, target, manifest.n_shards)
                for number, one in enumerate(spread.map(probe, names), 1):
                    probed.append(one)
                    reporter.advance(number, len(names), "layers")
                reporter.done()
    found = _ranked(probed, metric, experiment) if probed else [{"layer": layer} for layer in names]
    return _finish(experiment, run, data.uri, manifest.key, rows, found, metric, stages, shape, command)


def _rows_of(manifest: Any, pieces: Sequence[tuple[str, int]]) -> list[int]:
    by_name = {str(split): part for split, part in manifest.splits.items()}
    return [by_name[split].shards[v].rows for split, v in pieces]


@contextmanager
def _spread(experiment: Experiment, shape: Shape, most: int, reporter: Reporter) -> "Iterator[Spread]":
    """Extract in this process, or in tasks: as many as there are workers asked for, or CPUs free."""
    from shoal.cluster.sharding.spread import Here

    if shape.placement == "inline":
        yield Here()
        return
    from shoal.cluster.tasks import tasks

    part = Part("extractions", 1, shape.cpus_per_worker, shape.gpus_per_worker, float(_TASK_MEMORY))
    asked = most if experiment.cluster.num_workers == "auto" else min(most, shape.num_workers)
    with tasks(experiment.cluster, part, reporter, most=asked) as several:
        yield several


def _ranked(probed: "Sequence[Probed]", metric: "Metric", experiment: Experiment) -> list[dict[str, Any]]:
    """Return the layers with their probes' scores on the validation rows, best first."""
    from shoal.evaluation.intervals import estimate

    found = []
    for one in probed:
        settings = experiment.evaluation
        scored = estimate(
            one.labels,
            one.scores,
            [metric],
            confidence=settings.confidence,
            replicates=settings.replicates,
            seed=experiment.seed,
            spawn_key=(1,),
        )[metric.name]
        entry = {
            k: v if math.isfinite(v) else None
            for k, v in asdict(scored).items()
            if k in ("value", "low", "high")
        }
        found.append(
            {
                "layer": one.layer,
                "width": one.width,
                "rows": one.rows,
                "metric": metric.name,
                **entry,
                "seconds": one.seconds,
            }
        )
    worst = -math.inf if metric.greater_is_better else math.inf
    return sorted(
        found,
        key=lambda entry: worst if entry["value"] is None else entry["value"],
        reverse=metric.greater_is_better,
    )


def _finish(
    experiment: Experiment,
    run: RunFolder,
    data_uri: str,
    data_key: str,
    rows: dict[str, int],
    found: list[dict[str, Any]],
    metric: "Metric",
    stages: Stages,
    shape: Shape,
    command: Sequence[str] | None,
) -> FeaturesResult:
    sentence = ""
    if "value" in found[0]:
        first = found[0]
        shown = "undefined" if first["value"] is None else f"{first['value']:.4f}"
        sentence = f"{first['layer']} ranks first: {metric.name} {shown} on {plural(rows['validation'], 'validation row')}"
        if len(found) > 1:
            sentence += "; it was chosen by these, so judge what you build on it on the test rows"
    facts = provenance(
        stages,
        seed=experiment.seed,
        data_key=data_key,
        data_path=data_uri,
        cluster={"placement": shape.placement, "num_workers": shape.num_workers},
        fit={},
        command=command,
    )
    run.write_json(PROVENANCE, facts)
    metrics = {"rows": rows, "layers": found, "sentence": sentence, "seconds": facts["seconds"]}
    run.write_json("metrics.json", metrics)  # last: it says that the run is complete
    return FeaturesResult(run.uri, **metrics)
