"""adapt: from labelled rows of one domain and rows of another without labels to a model for the other, beside the plain one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cluster.components import Choice, load_imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.progress import Reporter, Silent
from shoal.cluster.resources import Demand, Shape, plan
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.config import SplitConfig
from shoal.cluster.sharding.names import plural, require
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, given, to_dict
from shoal.transfer.adaptation.config import (
    ADAPTATIONS,
    AlignmentConfig,
)
from shoal.verbs.adapt_fits import FITS, SOURCE_ONLY, Work, fit_adapted, fit_kind
from shoal.verbs.dataset import shard, shard_target
from shoal.verbs.fit import capped, fit_into
from shoal.verbs.provenance import Stages, provenance
from shoal.verbs.rows import given_as
from shoal.verbs.runs import PROVENANCE, claimed, run_uri
from shoal.verbs.starting import starting
from shoal.verbs.writable import require_cache

if TYPE_CHECKING:
    from shoal.transfer.shift.compare import Shift
    from shoal.verbs.look import Look

IN_DOMAIN = "in_domain"


@dataclass(frozen=True)
class AdaptResult:
    """The scores of the plain and the adapted model, over seeds, and how the latter was chosen."""

    run: str
    report: str
    found: dict[str, Any] = field(repr=False)
    seconds: dict[str, float]
    was_complete: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def adapt(
    experiment: Experiment | str | Path,
    out: str | None = None,
    *,
    name: str | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] | None = None,
) -> AdaptResult:
    """Fit the source's labelled rows, plainly and with the target's unlabelled ones, over seeds; judge both beside each other.

    Every fit is a whole run of its own under ``RUN/fits/``, and the same command goes on with what is missing. No target label is
    read before all is fitted and chosen.

    Parameters
    ----------
    experiment
        With `transfer.adaptation` and `transfer.target_data`; or the path of its file.
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
        With the cause and the fix: `RequestError` before anything is fitted, `RunError` afterwards.
    """
    from shoal.training.allowed import needs_group, refuse
    from shoal.training.scikit.unused import names_estimator

    reporter = reporter or Silent()
    experiment, name = given(experiment, name)
    if experiment.transfer is None or experiment.transfer.adaptation is None:
        raise ConfigError(
            "shoal adapt needs a target domain: give transfer: {adaptation: dann, target_data: {path: …}}, with one of "
            f"{', '.join(ADAPTATIONS)}"
        )
    if names_estimator(experiment.model):
        raise ConfigError(
            "transfer.adaptation is for networks, and model.import names an estimator of scikit-learn's; use mlp, linear or a "
            "torch.nn.Module"
        )
    load_imported(experiment, experiment.training)
    shape, demand = plan(experiment.cluster, needs_group(experiment.training))
    refuse(experiment.training, shape)
    require_cache(experiment.cluster, shape)
    run = RunFolder.open(run_uri(experiment, "adapt", name, out), experiment.cluster.storage)
    with claimed(run, to_dict(experiment), reporter, "metrics.json") as heard:
        if run.is_complete:
            heard.notice(f"this run is complete; nothing is computed again. Delete {run.uri} to repeat it")
            return replace(_result(run), was_complete=True)
        return _adapt(experiment, run, name, shape, demand, heard, command)


def _adapt(
    experiment: Experiment,
    run: RunFolder,
    name: str,
    shape: Shape,
    demand: Demand,
    reporter: Reporter,
    command: Sequence[str] | None,
) -> AdaptResult:
    from shoal.evaluation.report.adaptation import write_adaptation_report
    from shoal.evaluation.report.markup import Html
    from shoal.evaluation.report.shift import shift_section
    from shoal.training.config import EarlyStoppingConfig
    from shoal.transfer.adaptation.service import refuse
    from shoal.verbs.adapt_judging import chosen, final_test, require_test_rows, shifted, summary
    from shoal.verbs.label_plan import planned
    from shoal.verbs.leave_domain_out import leaves_out, left_out

    assert experiment.transfer is not None
    stages, config = Stages(reporter), experiment.transfer
    starting(experiment)  # what cannot be started from is refused before the sharding
    with stages.stage("shard", "sharding the source"):
        source = shard(experiment, name=name, reporter=reporter, verify=False)
    if not any(source.manifest.splits[part].rows for part in ("validation", "test")):
        raise ConfigError(
            "shoal adapt needs rows of the source that train nothing, to choose and to judge by: set data.split.validation or "
            "data.split.test above 0"
        )
    require_test_rows(experiment, source.manifest.schema_)
    with stages.stage("shard_target", "sharding the target, without labels"):
        target = shard_target(experiment, source.manifest, name, reporter)
    methods = named_methods(experiment)
    wanted, shape = shape, shape.within(min(source.manifest.n_shards, target.manifest.n_shards))
    if shape != wanted:
        reporter.notice(capped(min(source.manifest.n_shards, target.manifest.n_shards)))
    for method in methods.values():
        rows = target.manifest.splits["train"].rows
        refuse(method, experiment.training, source.manifest.schema_, rows, shape.num_workers)
    work = Work(experiment, run, source, target, shape, demand, stages, reporter, command)
    _rehearse(work, methods.values())
    if experiment.training.early_stopping not in (None, EarlyStoppingConfig()):
        reporter.notice(
            "training.early_stopping is left out: all fits take all epochs, so that they differ by the adaptation alone"
        )
    takes_turns = leaves_out(experiment, source.manifest.schema_, source.manifest.splits["validation"].rows)
    fits: dict[str, list[str]] = {kind: [] for kind in (SOURCE_ONLY, *methods)}
    shift: Shift | None = None
    judged_without = None
    with _one_ray(work):
        for seed in range(config.seeds):
            plain = fit_kind(work, SOURCE_ONLY, seed, lambda job: job)
            fits[SOURCE_ONLY].append(plain)
            if not seed:
                with stages.stage("shift", "looking at the shift"):
                    shift = shifted(work.experiment, work.open(source), work.open(target), plain)
                    for said in summary(shift)["sentences"]:
                        reporter.notice(said)
            for kind, method in methods.items():
                fits[kind].append(fit_adapted(work, kind, method, seed, plain))
        if takes_turns:
            judged_without = left_out(work, methods, name)
    with stages.stage("select", "choosing without target labels"):
        selection = chosen(
            work.experiment, work.open(source), work.open(target), fits, SOURCE_ONLY, judged_without
        )
    with stages.stage("plan_labels", "planning labels"):
        best = selection["chosen"]
        plan_of_labels = planned(experiment, run, work.open(target), fits[SOURCE_ONLY][0], fits[best][0])
    labelled = config.target_data is not None and config.target_data.test is not None
    in_domain = _in_domain(work, name) if config.in_domain and labelled else None
    with stages.stage("judge", "final test" if labelled else "judging on source rows"):
        found = final_test(work.experiment, fits, selection["chosen"], in_domain, reporter)
    selection["chosen"] = found.pop("chosen")
    if found["oracle"]:
        selection["sentence"] = f"{selection['chosen']} was chosen by the target's labels (oracle)"
    found |= {
        "selection": selection,
        "shift": summary(shift),
        "seeds": config.seeds,
        "fits": fits,
        "label_plan": plan_of_labels,
    }
    facts = provenance(
        stages,
        seed=experiment.seed,
        data_key=source.manifest.key,
        data_path=source.uri,
        cluster=asdict(shape),
        fit={"target": target.manifest.key},
        command=command,
    )
    run.write_json(PROVENANCE, facts)
    with stages.stage("report", "writing the report"):
        section = Html("")
        if shift is not None:
            section = shift_section(
                shift.verdict.sentences,
                shift.separations,
                shift.columns,
                shift.drawn,
                shift.labels,
                shift.classes,
                warn=shift.verdict.alignment_may_hurt,
            )
        write_adaptation_report(run, found, facts, source.manifest, target.manifest, section)
    run.write_json("metrics.json", found)  # last: it says that the run is complete
    reporter.done()
    return _result(run)


@contextmanager
def _one_ray(work: Work) -> Iterator[None]:
    """Keep one Ray for all fits that need one."""
    if work.shape.placement == "inline":
        yield
        return
    from shoal.cluster.session import session

    with session(work.experiment.cluster, work.demand, work.reporter):
        yield


def _rehearse(work: Work, methods: Iterable[Config]) -> None:
    """Put every method beside a new model, so that one that does not fit is refused before anything is fitted.

    Raises
    ------
    ConfigError
        If a model has no such layer.
    """
    from shoal.training.models import build_model
    from shoal.transfer.adaptation.service import at_work

    experiment, schema = work.experiment, work.source.manifest.schema_
    source, target = work.open(work.source), work.open(work.target)
    for method in methods:
        at_work(
            method,
            lambda number: build_model(experiment.model, schema, experiment.seed + number),
            source,
            target,
            None,
            experiment.seed,
            experiment.training.epochs,
        )


def check_target(experiment: Experiment, found: "Look", shape: Shape) -> tuple[str, ...]:
    """Look at the target's files and at the methods without reading a row; return what to say.

    Raises
    ------
    ShoalError
        What `adapt` would refuse of them.
    """
    from shoal.cluster.sharding.listing import find
    from shoal.cluster.sharding.source import open_source
    from shoal.training.models import build_model
    from shoal.training.rehearsal import labels_alone
    from shoal.transfer.adaptation.service import at_work, refuse
    from shoal.verbs.adapt_judging import require_test_rows
    from shoal.verbs.leave_domain_out import leaves_out

    assert experiment.transfer is not None
    assert experiment.transfer.target_data is not None
    with given_as("transfer.target_data.path"):
        rows = open_source(find(experiment.transfer.target_data.path, experiment.cluster.storage))
    for column in found.schema.columns:
        require(column.name, rows.schema.names, "transfer.target_data")
    require_test_rows(experiment, found.schema)
    alone = labels_alone(found.schema, found.labels, found.n_shards, found.costs, found.row_ids)
    methods = named_methods(experiment)
    for method in methods.values():
        refuse(method, experiment.training, found.schema, rows.n_rows, shape.num_workers)
        if isinstance(method, AlignmentConfig):
            at_work(
                method,
                lambda number: build_model(experiment.model, found.schema, experiment.seed + number),
                alone,
                alone,
                None,
                experiment.seed,
                experiment.training.epochs,
            )
    fits = experiment.transfer.seeds * (1 + len(methods))
    said = (
        f"shoal adapt: {plural(rows.n_rows, 'target row')}; {plural(fits, 'fit')}: source only and {', '.join(methods)}, "
        f"{plural(experiment.transfer.seeds, 'seed')} each"
    )
    if leaves_out(experiment, found.schema, len(found.labels["validation"])):
        domains = len(found.schema.domains)
        said += (
            f"; and {plural(domains * (1 + len(methods)), 'fit')} with each of {domains} source domains in the target's place "
            "(transfer.leave_one_domain_out)"
        )
    return (said,)


def _result(run: Storage) -> AdaptResult:
    facts = run.read_json(PROVENANCE)
    return AdaptResult(
        run.uri, f"{run.uri.rstrip('/')}/report.html", run.read_json("metrics.json"), facts["seconds"]
    )


def named_methods(experiment: Experiment) -> dict[str, Config]:
    """Return the methods to fit by a name each: that of the method, with a number where it comes again."""
    assert experiment.transfer is not None
    assert experiment.transfer.adaptation is not None
    found: dict[str, Config] = {}
    for method in (experiment.transfer.adaptation, *experiment.transfer.candidates):
        name = str(Choice(ADAPTATIONS).name_of(method))
        same = sum(known.rpartition("-")[0] == name or known == name for known in found)
        found[f"{name}-{same + 1}" if same else name] = method
    return found


def _in_domain(work: Work, name: str) -> str | None:
    """Fit labelled target rows, as an upper bound: a run of its own on its own split; None where that cannot be."""
    experiment, config = work.experiment, work.transfer
    path = config.target_data.path if config.target_data.test == "same" else config.target_data.test
    data = experiment.data.model_copy(update={"path": path, "split": SplitConfig()})
    plain = config.model_copy(update={"adaptation": None, "candidates": (), "target_data": None})
    experiment = experiment.model_copy(update={"data": data, "transfer": plain})
    uri = f"{work.run.uri.rstrip('/')}/{FITS}/{IN_DOMAIN}"
    folder = RunFolder.open(uri, experiment.cluster.storage)
    try:
        with claimed(folder, to_dict(experiment), work.reporter, "metrics.json") as heard:
            if folder.is_complete:
                return uri
            heard.stage("in domain: labelled target rows, as an upper bound")
            rows = shard(experiment, name=f"{name}-in-domain", reporter=Silent(), verify=False)
            shape = work.shape.within(rows.manifest.n_shards)
            own = Stages(heard)
            fit_into(folder, experiment, rows, shape, work.demand, own, heard, work.command)
            work.stages.seconds[IN_DOMAIN] = round(sum(own.seconds.values()), 3)
    except (DataError, ConfigError) as error:
        work.reporter.notice(f"no upper bound: labelled target rows cannot be fitted: {error}")
        return None
    return uri
