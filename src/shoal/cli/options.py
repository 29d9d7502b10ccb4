"""The options that every verb takes, and the decorator that adds them."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.output import Interrupted, Output, show, state
from shoal.cluster.errors import ConfigError

if TYPE_CHECKING:
    from shoal.cluster.config import ClusterConfig
    from shoal.cluster.progress import Reporter
    from shoal.experiment import Experiment


@dataclass(frozen=True)
class Common:
    """What every verb was given."""

    overrides: tuple[str, ...] = ()
    cluster_file: Path | None = None
    out: str | None = None
    time_limit: timedelta | None = None
    quiet: bool = False

    def load(self, config: str) -> "Experiment":
        """Read the experiment file with the overrides and the cluster file."""
        from shoal.experiment import load_experiment

        debug = ("cluster.debug=true",) if state.debug else ()
        return load_experiment(config, (*self.overrides, *debug), self.cluster_file)

    def cluster(self) -> "ClusterConfig | None":
        """Read the cluster file alone, for verbs that take a run; None where none was given."""
        if self.cluster_file is None:
            return None
        from shoal.experiment import load_cluster

        return load_cluster(self.cluster_file)

    def reporter(self) -> "Reporter":
        """Return who shows progress on stderr."""
        from shoal.cli.progress import Live
        from shoal.cluster.progress import Silent

        state.reporter = Silent() if self.quiet else Live()
        return state.reporter

    def refuse(self, verb: str, *, overrides: bool = False, cluster: bool = False, out: bool = False) -> None:
        """Refuse the options that mean nothing for a verb, rather than ignore them."""
        given = {
            "--set": bool(self.overrides),
            "--cluster": self.cluster_file is not None,
            "--out": self.out is not None,
        }
        unused = {"--set": overrides, "--cluster": cluster, "--out": out}
        for option, present in given.items():
            if present and unused[option]:
                raise ConfigError(f"{option} changes nothing for shoal {verb}; leave it out")


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "overrides": (
        Annotated[
            list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value; repeatable.")
        ],
        None,
    ),
    "cluster_file": (
        Annotated[
            Path | None, typer.Option("--cluster", metavar="FILE", help="YAML with the cluster section.")
        ],
        None,
    ),
    "out": (
        Annotated[str | None, typer.Option("--out", metavar="RUN", help="Folder or URI of the results.")],
        None,
    ),
    "time_limit": (
        Annotated[
            str | None, typer.Option("--time-limit", metavar="TIME", help="End after 90s, 10m, 6h, 1d.")
        ],
        None,
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")], False),
    "quiet": (Annotated[bool, typer.Option("--quiet", help="Print errors only, or the JSON result.")], False),
    "debug": (
        Annotated[bool, typer.Option("--debug", help="Show tracebacks, and Ray's own messages.")],
        False,
    ),
}


def verb(function: Callable[..., Output]) -> Callable[..., None]:
    """Add the common options to a verb whose first parameter is a `Common`; print what it returns."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        options = {name: given.pop(name) for name in _OPTIONS}
        common = Common(
            tuple(options["overrides"] or ()),
            options["cluster_file"],
            options["out"],
            _duration(options["time_limit"]),
            options["quiet"],
        )
        from shoal.cli.deadline import deadline

        try:
            with deadline(common.time_limit, state.remains):
                result = function(common, **given)
        except KeyboardInterrupt as interrupt:
            raise Interrupted from interrupt
        finally:
            if state.reporter is not None:
                state.reporter.done()  # gives the terminal its cursor back
        show(result, common.quiet)

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    del command.__wrapped__
    return command


def _duration(text: str | None) -> timedelta | None:
    if text is None:
        return None
    from shoal.cluster.config import parse_duration

    try:
        value = parse_duration(float(text) if text.replace(".", "", 1).isdigit() else text)
    except ValueError as error:
        raise ConfigError(f"--time-limit {text}: {error}") from error
    if value <= timedelta(0):
        raise ConfigError(f"--time-limit {text}: it must be above 0, such as 10m")
    assert isinstance(value, timedelta)
    return value
