"""The verbs and their arguments; what they do is in `shoal.verbs`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import show_results
from shoal.cli.jobs import add_submit, jobs
from shoal.cli.kubernetes import add_kubernetes
from shoal.cli.options import Common, Compare, FindLearningRate, ListLayers, verb
from shoal.cli.output import Output, state

if TYPE_CHECKING:
    from shoal.experiment import Experiment

app = typer.Typer(
    name="shoal",
    help="Train, judge and report models, on one laptop or a Ray cluster, from one experiment file.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="Experiment file, YAML.", show_default=False)]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder or URI of a finished run.", show_default=False)
]
AllowImport = Annotated[
    bool, typer.Option("--allow-import", help="Import a model of your own by the name in the run.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file.")]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"shoal {version('shoal')}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
    ] = False,
) -> None:
    """Train, judge and report models, on one laptop or a Ray cluster, from one experiment file."""


@app.command()
@verb(out=("FOLDER", "Folder of everything (default: shoal-demo)."))
def demo(common: Common) -> Output:
    """Run the whole path on embedded real data, in about a minute."""
    from shoal.verbs.digits import FOLDER
    from shoal.verbs.digits import demo as run

    state.run = common.out or FOLDER
    result = run(
        common.out or FOLDER,
        overrides=common.overrides,
        cluster_file=common.cluster_file,
        reporter=common.reporter(),
    )
    return Output(result.as_dict(), show_results.demo(result))


@app.command()
@verb(without=["cluster_file"], out=("FILE", "File to write (default: DATA's name with .yaml)."))
def init(
    common: Common,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Parquet file, folder or glob.", show_default=False)
    ],
    target: Annotated[
        list[str],
        typer.Option("--target", metavar="COLUMN", help="Column to predict; repeat for multi-label."),
    ],
    force: Force = False,
) -> Output:
    """Write a commented experiment file from the data."""
    from shoal.verbs.first_file import init as run

    result = run(
        data, target, common.out, overrides=common.overrides, force=force, reporter=common.reporter()
    )
    return Output(result.as_dict(), show_results.init(result))


@app.command()
@verb(out=("RUN", "Run folder that shoal train is to write."))
def check(common: Common, config: Config) -> Output:
    """Validate, look at the data, show the resolved experiment and the resources; run nothing."""
    experiment = common.load(config)
    from shoal.verbs.check import check as run  # after the file: its errors need not wait for pyarrow

    result = run(experiment, common.out, reporter=common.reporter())
    return Output(result.as_dict(), show_results.check(result))


@app.command()
@verb()
def shard(common: Common, config: Config) -> Output:
    """Write the sharded dataset that every fit reads, or find it."""
    experiment = common.load(config)
    from shoal.verbs.dataset import shard as run

    state.run = common.out or experiment.cluster.storage_path
    result = run(experiment, common.out, name=Path(config).stem, reporter=common.reporter())
    return Output(result.as_dict(), show_results.shard(result))


@app.command()
@verb()
def train(
    common: Common,
    config: Config,
    find_learning_rate: FindLearningRate = False,
) -> Output:
    """Fit a model, judge it on rows it never saw, and write the report."""
    experiment = common.load(config)
    if find_learning_rate:
        return _find_learning_rate(common, experiment, Path(config).stem)
    from shoal.verbs.fit import train as run
    from shoal.verbs.runs import run_uri

    name = Path(config).stem
    state.run = run_uri(experiment, "train", name, common.out)
    result = run(experiment, state.run, name=name, reporter=common.reporter())
    return Output(result.as_dict(), show_results.train(result))


def _find_learning_rate(common: Common, experiment: "Experiment", name: str) -> Output:
    from shoal.verbs.range_test import find_learning_rate
    from shoal.verbs.runs import run_uri

    state.run = run_uri(experiment, "find-learning-rate", name, common.out)
    result = find_learning_rate(experiment, state.run, name=name, reporter=common.reporter())
    return Output(result.as_dict(), show_results.range_test(result))


@app.command()
@verb()
def crossval(
    common: Common,
    config: Config,
    compare: Compare = None,
) -> Output:
    """Fit and judge every fold; the test rows stay untouched."""
    experiment = common.load(config)
    from shoal.verbs.crossval import crossval as run

    state.run = common.out or experiment.cluster.storage_path
    result = run(experiment, common.out, compare=compare, name=Path(config).stem, reporter=common.reporter())
    return Output(result.as_dict(), show_results.crossval(result))


@app.command()
@verb()
def tune(common: Common, config: Config) -> Output:
    """Try values of a space, fit the best ones again, and judge them on rows that no trial saw."""
    experiment = common.load(config)
    from shoal.verbs.runs import run_uri
    from shoal.verbs.tune import tune as run

    name = Path(config).stem
    state.run = run_uri(experiment, "tune", name, common.out)
    result = run(experiment, state.run, name=name, reporter=common.reporter())
    return Output(result.as_dict(), show_results.tune(result))


@app.command()
@verb()
def adapt(
    common: Common,
    config: Config,
    labels: Annotated[
        str | None,
        typer.Option(
            "--settle",
            metavar="FILE",
            help="Labels of a finished run's label plan: which model they speak for.",
        ),
    ] = None,
) -> Output:
    """Fit labelled rows of one domain for another whose rows have no labels, beside the plain fit."""
    experiment = common.load(config)
    if labels is not None:
        from shoal.verbs.label_plan import settle

        found = settle(experiment, labels, common.out, name=Path(config).stem)
        return Output(found.as_dict(), [found.settled["message"]])
    from shoal.verbs.adapt import adapt as run

    state.run = common.out or experiment.cluster.storage_path
    result = run(experiment, common.out, name=Path(config).stem, reporter=common.reporter())
    return Output(result.as_dict(), show_results.adapt(result))


@app.command()
@verb()
def features(
    common: Common,
    config: Config,
    list_layers: ListLayers = False,
) -> Output:
    """Write what layers of a model give for every row, and rank them by linear probes."""
    experiment = common.load(config)
    from shoal.verbs.features import features as run
    from shoal.verbs.features import layers

    if list_layers:
        found = layers(experiment, reporter=common.reporter())
        return Output(found.as_dict(), show_results.layers(found))
    state.run = common.out or experiment.cluster.storage_path
    result = run(experiment, common.out, name=Path(config).stem, reporter=common.reporter())
    return Output(result.as_dict(), show_results.features(result))


@app.command()
@verb(overrides=("evaluation.KEY=VALUE", "Change how it is judged; repeatable."))
def evaluate(
    common: Common,
    run: Run,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Other labelled data, Parquet or CSV.")
    ] = None,
    allow_import: AllowImport = False,
) -> Output:
    """Score a run with intervals: its own test rows again, or other labelled data."""
    from shoal.verbs.judge import evaluate as judge

    result = judge(
        run,
        data,
        out=common.out,
        overrides=common.overrides,
        cluster=common.cluster(),
        reporter=common.reporter(),
        allow_import=allow_import,
    )
    return Output(result.as_dict(), show_results.evaluate(result))


@app.command()
@verb(
    overrides=("evaluation.KEY=VALUE", "Change how it is explained; repeatable."),
    out=("FOLDER", "Folder of the tables and the page (default: RUN/explanations)."),
)
def explain(
    common: Common,
    run: Run,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Other data, Parquet or CSV.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAMES",
            help="permutation, partial_dependence, shap, lime, integrated_gradients, gradient_shap, deep_lift, saliency.",
        ),
    ] = "",
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", help="Rows explained one by one, at most.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="COLUMN", help="Column of partial dependence, a,b for two; repeatable."
        ),
    ] = None,
    background: Annotated[
        int | None,
        typer.Option("--background", metavar="N", help="Rows that explained ones are compared with."),
    ] = None,
    allow_import: AllowImport = False,
) -> Output:
    """Say what a run's answers come from, on rows that it was not fitted to."""
    from shoal.verbs.explanations import explain as answer

    result = answer(
        run,
        data,
        methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
        rows=rows,
        columns=tuple(columns or ()),
        background=background,
        out=common.out,
        overrides=tuple(o for o in common.overrides if not o.startswith("cluster.")),
        cluster=common.cluster(),
        reporter=common.reporter(),
        allow_import=allow_import,
    )
    return Output(result.as_dict(), show_results.explain(result))


@app.command()
@verb(without=["overrides", "out"])
def predict(
    common: Common,
    run: Run,
    data: Annotated[str, typer.Option("--data", metavar="IN", help="Rows to predict, Parquet or CSV.")],
    to: Annotated[str, typer.Option("--to", metavar="OUT", help="File to write, .parquet or .csv.")],
    force: Force = False,
    allow_import: AllowImport = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Estimate, without labels, how many decisions are right.")
    ] = False,
) -> Output:
    """Predict rows in their order; OUT appears whole or not at all."""
    from shoal.verbs.predictions import predict as answer

    result = answer(
        run,
        data,
        to,
        force=force,
        cluster=common.cluster(),
        reporter=common.reporter(),
        allow_import=allow_import,
        estimate=estimate,
    )
    return Output(result.as_dict(), show_results.predict(result))


@app.command()
@verb(without=["overrides", "out"])
def report(common: Common, run: Run) -> Output:
    """Build a run's report.html again."""
    from shoal.verbs.judge import report as build

    result = build(run, cluster=common.cluster(), reporter=common.reporter())
    return Output(result.as_dict(), show_results.report(result))


@app.command()
@verb(without=["overrides", "cluster_file", "out"])
def schema(_common: Common) -> Output:
    """Print the JSON Schema of the experiment file, for editors."""
    import json

    from shoal.experiment import json_schema

    found: dict[str, Any] = json_schema()
    return Output(found, [json.dumps(found, indent=2, ensure_ascii=False)])


add_submit(app)
add_kubernetes(app)
app.add_typer(jobs, name="jobs")
