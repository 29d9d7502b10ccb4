"""The options that verbs have in common, and the decorator that adds those which mean something for a verb."""

import functools
import inspect
from collections.abc import Callable, Collection
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


# Of one verb each, and of those that send that verb elsewhere.
Compare = Annotated[
    Path | None,
    typer.Option("--compare", metavar="FILE", help="YAML with alternatives, judged on the same folds."),
]
FindLearningRate = Annotated[
    bool,
    typer.Option("--find-learning-rate", help="Only try rising rates for an epoch, and suggest one."),
]
ListLayers = Annotated[bool, typer.Option("--list", help="Only list the model's layers, with their shapes.")]


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
        from shoal.experiment import from_document, read_document

        debug = ("cluster.debug=true",) if state.debug else ()
        state.document = read_document(config, self.cluster_file)
        return from_document(state.document, (*self.overrides, *debug))

    def cluster(self) -> "ClusterConfig | None":
        """Read the cluster file and overrides of it, for verbs that take a run; None where neither was given."""
        overrides = [override for override in self.overrides if override.startswith("cluster.")]
        if self.cluster_file is None and not overrides:
            return None
        from shoal.experiment import load_cluster

        return load_cluster(self.cluster_file, overrides)

    def reporter(self) -> "Reporter":
        """Return who shows progress on stderr."""
        from shoal.cli.progress import Live
        from shoal.cluster.progress import Silent

        state.reporter = Silent() if self.quiet else Live()
        return state.reporter


# Parameter: its type, flag, metavar, help and default.
_OPTIONS: dict[str, tuple[Any, str, str | None, str, Any]] = {
    "overrides": (list[str] | None, "--set", "KEY=VALUE", "Change one value; repeatable.", None),
    "cluster_file": (Path | None, "--cluster", "FILE", "YAML with the cluster section.", None),
    "out": (str | None, "--out", "RUN", "Folder or URI of the results.", None),
    "time_limit": (str | None, "--time-limit", "TIME", "End after 90s, 10m, 6h, 1d.", None),
    "as_json": (bool, "--json", None, "Print the result as one JSON object.", False),
    "quiet": (bool, "--quiet", None, "Print errors only, or the JSON result.", False),
    "debug": (bool, "--debug", None, "Show tracebacks, and Ray's own messages.", False),
}


def verb(
    *, without: Collection[str] = (), **here: tuple[str, str]
) -> Callable[[Callable[..., Output]], Callable[..., None]]:
    """Add the common options to a verb whose first parameter is a `Common`; print what it returns.

    Parameters
    ----------
    without
        Options that change nothing for this verb: its help leaves them out, and giving one is an error.
    here
        Metavar and help that an option has for this verb. A `time_limit` with a meaning of its own does not end the verb.
    """

    def decorate(function: Callable[..., Output]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            options = {name: given.pop(name) for name in _OPTIONS}
            for name in without:
                if options[name]:
                    raise ConfigError(
                        f"{_OPTIONS[name][1]} changes nothing for shoal {function.__name__}; leave it out"
                    )
            if options["out"] is not None and not options["out"].strip():
                raise ConfigError("--out is empty; name a place, or leave it out for the default")
            common = Common(
                tuple(options["overrides"] or ()),
                options["cluster_file"],
                options["out"],
                _duration(options["time_limit"]),
                options["quiet"],
            )
            from shoal.cli.deadline import deadline

            try:
                with deadline(None if "time_limit" in here else common.time_limit, state.remains):
                    result = function(common, **given)
            except KeyboardInterrupt as interrupt:
                raise Interrupted from interrupt
            finally:
                if state.reporter is not None:
                    state.reporter.done()  # gives the terminal its cursor back
            show(result, common.quiet)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        for name, (kind, flag, metavar, text, default) in _OPTIONS.items():
            shown, meaning = here.get(name, (metavar, text))
            option = typer.Option(flag, metavar=shown, help=meaning, hidden=name in without)
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=Annotated[kind, option],
                )
            )
        # typer reads the options from here; functions have the attribute, their type does not say so.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        del command.__wrapped__
        return command

    return decorate


def _duration(text: str | None) -> timedelta | None:
    if text is None:
        return None
    from shoal.cluster.config import parse_duration

    if text.lstrip().startswith("-"):
        raise ConfigError(f"--time-limit {text}: it must be above 0, such as 10m")
    try:
        value = parse_duration(float(text) if text.replace(".", "", 1).isdigit() else text)
    except ValueError as error:
        raise ConfigError(f"--time-limit {text}: {error}") from error
    if value <= timedelta(0):
        raise ConfigError(f"--time-limit {text}: it must be above 0, such as 10m")
    assert isinstance(value, timedelta)
    return value
