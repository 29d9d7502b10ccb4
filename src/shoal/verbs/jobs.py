"""submit: a verb as a job on a cluster elsewhere; the same command again finds the job that it made."""

import importlib.metadata
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import shoal
from shoal.cluster.config import format_duration
from shoal.cluster.errors import ConfigError, RequestError, RunError
from shoal.cluster.jobs import Command, Found, Job, Jobs
from shoal.cluster.progress import Reporter, Silent
from shoal.experiment import Experiment, given
from shoal.verbs.elsewhere import NONE, Errand, Options, modules_of

_EXACT = ("ray", "torch", "shoal")
_WRONG_REQUEST = 2
_ERROR = re.compile(r"^error: ", re.MULTILINE)


@dataclass(frozen=True)
class SubmitResult:
    """A job, and whether this call started it."""

    job: Job
    address: str
    started: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self.job), "address": self.address, "started_now": self.started}


def submit(
    verb: str,
    experiment: Experiment | str | Path,
    address: str,
    out: str | None = None,
    *,
    name: str | None = None,
    options: Options = NONE,
    time_limit: timedelta | None = None,
    again: bool = False,
    wait: bool = False,
    follow: Callable[[str], object] | None = None,
    on_job: Callable[[Job], object] | None = None,
    reporter: Reporter | None = None,
) -> SubmitResult:
    """Run a verb as a job on the cluster whose dashboard is at an address, or find the job that does it already.

    The job is known by what its result depends on and where that goes, so that the same command finds a job that runs or has
    finished. One that failed or was stopped is started anew, and goes on where its run was left. This installation's own code is
    sent with it; what it imports is compared with the cluster's first.

    Parameters
    ----------
    verb
        One that takes an experiment: train, crossval ….
    experiment
        What to do, or the path of its file.
    address
        ``http://host:8265``.
    out
        Run folder; one under `cluster.storage_path` by default.
    name
        What the run's folder begins with; by default the experiment file's stem.
    options
        What the verb is told beside the experiment.
    time_limit
        After which the job ends itself.
    again
        Start a job even where one has finished.
    wait, follow
        Return when the job has ended; ``follow`` is given what it prints, too.
    on_job
        Told of the job as soon as there is one.
    reporter
        Hears of progress.

    Raises
    ------
    ConfigError
        If something is of this machine alone, versions differ, or, when waited for, the job says that its request was wrong.
    ResourceError
        If the cluster cannot be reached.
    RunError
        When waited for: the job failed, or the cluster does not answer any more.
    """
    reporter = reporter or Silent()
    experiment, name = given(experiment, name)
    errand = Errand(verb, experiment, name, out, options)
    errand.refuse()
    command = _command(errand, time_limit)
    jobs = Jobs(address)
    before = jobs.attempts(command.key)
    if before and not again and before[-1].status not in ("FAILED", "STOPPED"):
        result = SubmitResult(before[-1], jobs.address, False)
    elif before and not before[-1].has_ended:
        raise ConfigError(
            f"job {before[-1].id} does this already; stop it first: shoal jobs stop {before[-1].id}"
        )
    else:
        reporter.stage("comparing versions")
        modules = modules_of(*errand.experiments.values())
        _refuse_other(jobs.versions((*_EXACT, *_requirements()), modules), jobs.address)
        reporter.stage("sending the job")
        result = SubmitResult(jobs.submit(command, len(before) + 1), jobs.address, True)
    if on_job is not None:
        on_job(result.job)
    if not wait and follow is None:
        return result
    reporter.stage(f"waiting for job {result.job.id}")
    try:
        job = jobs.wait(result.job.id) if follow is None else jobs.follow(result.job.id, follow)
    except RequestError as lost:  # the request was right
        raise RunError(f"job {result.job.id} was lost sight of, and may go on: {lost}") from lost
    _refuse_failed(job, jobs, told=follow is not None)
    return SubmitResult(job, jobs.address, result.started)


def _command(errand: Errand, time_limit: timedelta | None) -> Command:
    limit = () if time_limit is None else ("--time-limit", format_duration(time_limit))
    shape = errand.experiment.cluster
    return Command(
        key=errand.key,
        words=[*errand.words(), *limit],
        files=errand.files(),
        package=Path(shoal.__file__).parent,
        verb=errand.verb,
        run=errand.run,
        cpus=shape.cpus_per_worker if shape.placement == "inline" else 0.0,
    )


def _refuse_other(found: Found, address: str) -> None:
    """Refuse a cluster whose Python, Ray or torch are others, or that lacks a package or a module of the user's own."""
    ours = {"python": platform.python_version(), **{name: _version(name) for name in _EXACT}}
    theirs = {"python": found.python, **{name: found.packages[name] for name in _EXACT}}
    theirs["shoal"] = theirs["shoal"] or ours["shoal"]  # this one is sent
    differ = [
        f"{name} {ours[name]} here and {theirs[name] or 'none'} there"
        for name in ours
        if ours[name] is not None and _comparable(name, ours[name]) != _comparable(name, theirs[name])
    ]
    if differ:
        raise ConfigError(
            f"the cluster at {address} has other versions: {'; '.join(differ)}. Install the cluster's here, or these there "
            "(k8s/Dockerfile builds an image of them)"
        )
    if missing := [name for name, version in found.packages.items() if version is None and name != "shoal"]:
        raise ConfigError(
            f"the cluster at {address} lacks {', '.join(missing)}: install shoal with its requirements on all nodes, as "
            "k8s/Dockerfile does"
        )
    if missing := [name for name, is_there in found.modules.items() if not is_there]:
        raise ConfigError(
            f"the cluster at {address} has no module {', '.join(missing)}, which the experiment imports: install it on all "
            "nodes, or put it into their image"
        )


def _comparable(name: str, version: str | None) -> str | None:
    """Leave out what does not matter: Python's third number, and for which hardware torch was built."""
    if version is None:
        return None
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    """Return the packages that Shoal needs on Linux; none where it is not installed but only on the path."""
    try:
        lines = importlib.metadata.requires("shoal") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    needed = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line}
    return sorted(needed - set(_EXACT))


def _refuse_failed(job: Job, jobs: Jobs, told: bool) -> None:
    if job.status == "SUCCEEDED":
        return
    if job.status == "STOPPED":
        raise RunError(f"job {job.id} was stopped; the same command starts it anew, where its run was left")
    code = "" if job.exit_code is None else f" with exit code {job.exit_code}"
    why = "" if told else _last_words(jobs.logs(job.id) or job.message)
    error = ConfigError if job.exit_code == _WRONG_REQUEST else RunError
    raise error(
        f"job {job.id} failed{code}{why}\nits whole log: shoal jobs logs {job.id} --address {jobs.address}"
    )


def _last_words(logs: str) -> str:
    """Return the command's own error from what it printed, or the last lines of that."""
    begins = [match.start() for match in _ERROR.finditer(logs)]
    lines = logs[begins[-1] :].removeprefix("error: ").splitlines() if begins else logs.splitlines()[-5:]
    return ": " + "\n".join(line.strip() for line in lines[:10])
