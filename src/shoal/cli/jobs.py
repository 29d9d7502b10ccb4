"""`shoal submit` and `shoal jobs`: work on a cluster elsewhere, by Ray's job service."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.options import Common, Compare, FindLearningRate, ListLayers, verb
from shoal.cli.output import Output, state
from shoal.cluster.errors import ConfigError

if TYPE_CHECKING:
    from shoal.cluster.jobs import Job

jobs = typer.Typer(help="List, look at and stop jobs on a cluster.", no_args_is_help=True)

Address = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Dashboard of the cluster: http://host:8265.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow", help="Show what the job prints until it ends.")]
_WITHOUT = ("overrides", "cluster_file", "out")


def add_submit(app: typer.Typer) -> None:
    """Add ``submit`` to a command line, for those of its verbs that take an experiment."""

    @app.command()
    @verb(time_limit=("TIME", "The job's own: it ends after 90s, 10m, 6h, 1d."))
    def submit(
        common: Common,
        name: Annotated[str, typer.Argument(metavar="VERB", help="train, crossval …", show_default=False)],
        config: Annotated[
            str, typer.Argument(metavar="CONFIG", help="Experiment file, YAML.", show_default=False)
        ],
        address: Address,
        wait: Annotated[bool, typer.Option("--wait", help="Return when the job has ended.")] = False,
        follow: Follow = False,
        again: Annotated[
            bool, typer.Option("--again", help="Start a job even where one has finished.")
        ] = False,
        compare: Compare = None,
        find_learning_rate: FindLearningRate = False,
        list_layers: ListLayers = False,
    ) -> Output:
        """Run a verb as a job on a cluster, or find the job that does it already."""
        refuse_verb(app, name)
        experiment = common.load(config)
        from shoal.verbs.elsewhere import Options
        from shoal.verbs.jobs import submit as run

        def told(job: "Job") -> None:
            state.job = job.id

        result = run(
            name,
            experiment,
            address,
            common.out,
            name=Path(config).stem,
            options=Options(compare, find_learning_rate, list_layers),
            time_limit=common.time_limit,
            again=again,
            wait=wait,
            follow=_to(sys.stderr) if follow else None,
            on_job=told,
            reporter=common.reporter(),
        )
        began = "started" if result.started else "found"
        return Output(
            result.as_dict(),
            [f"{began}: {line}" if n == 0 else line for n, line in enumerate(_lines(result.job))],
        )


def refuse_verb(app: typer.Typer, name: str) -> None:
    """Refuse a verb that does not run an experiment.

    Raises
    ------
    ConfigError
        With those that do.
    """
    allowed = [verb for verb in _verbs(app) if verb not in ("check", "submit")]
    if name not in allowed:
        raise ConfigError(
            f"{name}: no verb that runs an experiment elsewhere; use one of {', '.join(sorted(allowed))}"
        )


def _verbs(app: typer.Typer) -> list[str]:
    callbacks = [command.callback for command in app.registered_commands if command.callback is not None]
    return [f.__name__ for f in callbacks if "config" in f.__annotations__]


@jobs.command("list")
@verb(without=_WITHOUT)
def list_jobs(_common: Common, address: Address) -> Output:
    """List Shoal's jobs on a cluster."""
    from rich import box
    from rich.table import Table

    from shoal.cluster.jobs import Jobs

    found = Jobs(address).list()
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("job", "status", "verb", "started", "run"):
        table.add_column(column, overflow="fold")
    for job in found:
        table.add_row(job.id, job.status.lower(), job.verb, _time(job.started), job.run)
    return Output({"jobs": [_plain(job) for job in found]}, [table] if found else ["no jobs of Shoal's"])


@jobs.command("status")
@verb(without=_WITHOUT)
def job_status(_common: Common, name: Name, address: Address) -> Output:
    """Say how a job stands."""
    from shoal.cluster.jobs import Jobs

    job = Jobs(address).job(name)
    return Output(_plain(job), _lines(job))


@jobs.command("logs")
@verb(without=_WITHOUT)
def job_logs(_common: Common, name: Name, address: Address, follow: Follow = False) -> Output:
    """Print what a job has printed."""
    from shoal.cluster.jobs import Jobs

    found = Jobs(address)
    if follow:
        state.job = name
        job = found.follow(name, _to(sys.stderr if state.json else sys.stdout))
        return Output(_plain(job))
    logs = found.logs(name)
    return Output({"job": name, "logs": logs}, [logs.rstrip("\n")])


@jobs.command("stop")
@verb(without=_WITHOUT)
def stop_job(_common: Common, name: Name, address: Address) -> Output:
    """Stop a job; the same submit starts it anew, where its run was left."""
    from shoal.cluster.jobs import Jobs

    job = Jobs(address).stop(name)
    return Output(_plain(job), _lines(job))


def _to(stream: Any) -> Any:
    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _plain(job: "Job") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(job)


def _lines(job: "Job") -> list[str]:
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    ended = f", ended {_time(job.ended)}" if job.ended else ""
    return [
        job.id,
        f"status: {job.status.lower()}{code}; started {_time(job.started)}{ended}",
        *([f"run:    {job.run}"] if job.run else []),
    ]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not yet"
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
