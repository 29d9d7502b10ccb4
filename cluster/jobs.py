"""Ray's job service on a cluster elsewhere: send a command, find it again, follow it, stop it."""

import asyncio
import difflib
import json
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.cluster.address import checked_dashboard
from shoal.cluster.errors import ConfigError, RequestError, ResourceError
from shoal.cluster.session import environment

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
EXTRA = "pip install 'shoal[jobs]'"
_MARK = "shoal"  # the key of the metadata by which our jobs are known
_SECONDS = 30.0  # for one request
_POLL_SECONDS = 0.5  # between two looks at a job: Ray's job service tells of nothing by itself
_PATIENCE_SECONDS = 60.0  # with a way to the cluster that is broken, such as a port-forward that starts again
_PROBE_SECONDS = 120.0  # for the first process on a node that has just started
# Each sets a level of its own when it is imported, and tells of every upload.
_CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
_ID = re.compile(r"^\w[\w.-]*$", re.ASCII)
_NOT_FOUND = "status code 404"
_TAKEN = "already exists"
_PROBE = """
import importlib.metadata as m, importlib.util as u, json, platform, sys
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
def there(name):
    try:
        return u.find_spec(name) is not None
    except ImportError:
        return False
asked = json.loads(sys.argv[1])
found = {name: version(name) for name in asked["packages"]}
modules = {name: there(name) for name in asked["modules"]}
print("found:" + json.dumps({"python": platform.python_version(), "packages": found, "modules": modules}))
"""


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it.

    Attributes
    ----------
    id
        Its submission id.
    status
        Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
    verb, run
        What it does, and where its results are.
    started, ended
        Unix time in seconds; None while it has not.
    exit_code
        Of the command; None while it runs, and where it was killed.
    """

    id: str
    status: str
    verb: str = ""
    run: str = ""
    message: str = ""
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED


@dataclass(frozen=True)
class Command:
    """What a job is to do.

    Parameters
    ----------
    key
        Known by its content: the same command has the same key. The job's id begins with it.
    words
        The command line.
    files
        Name to content, in the directory that the command runs in.
    package
        Folder of a package that is sent with it, and is imported before one that is installed there.
    verb, run
        For lists of jobs.
    cpus
        Reserved for the command's own process.
    """

    key: str
    words: Sequence[str]
    files: Mapping[str, str]
    package: Path
    verb: str
    run: str
    cpus: float = 0.0


@dataclass(frozen=True)
class Found:
    """What is installed on the cluster: versions of packages, None where one is missing; and whether modules are there."""

    python: str
    packages: dict[str, str | None]
    modules: dict[str, bool]


class Jobs:
    """The jobs of one cluster.

    Parameters
    ----------
    address
        Of its dashboard: ``http://host:8265``, or ``host:8265``.

    Raises
    ------
    ConfigError
        If Ray's job client is not installed here.
    ResourceError
        If no dashboard of Ray's answers there within seconds, or it turns the token away.
    """

    def __init__(self, address: str) -> None:
        self.address, needs_token = checked_dashboard(address)
        _require_client()
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            """Ray's, which alone would wait for an answer for ever."""

            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(method, endpoint, **{"timeout": _SECONDS, **options})

        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        # Given by hand: Ray's compiled part keeps the mode that it finds when Ray is imported.
        headers = {"Authorization": f"Bearer {_token()}"} if needs_token else None
        # RAY_ADDRESS would take the place of the address that Ray is given, and this variable that of both.
        with self._told(), environment({"RAY_API_SERVER_ADDRESS": self.address}):
            self._client = Client(self.address, headers=headers)

    def versions(self, packages: Sequence[str], modules: Sequence[str] = ()) -> Found:
        """Ask the cluster's own Python what is installed there, by a job of a second.

        Raises
        ------
        ResourceError
            If it cannot run one.
        """
        asked = json.dumps({"packages": list(packages), "modules": list(modules)})
        with self._told():
            probe = self._client.submit_job(
                entrypoint=shlex.join(["python", "-c", _PROBE, asked]), metadata={_MARK: "versions"}
            )
        job = self.wait(probe, _PROBE_SECONDS)
        logs = self.logs(probe)
        lines = [line for line in logs.splitlines() if line.startswith("found:")]
        if job.status != "SUCCEEDED" or not lines:
            last = (logs.strip() or job.message).splitlines()[-1:]
            raise ResourceError(
                f"the cluster at {self.address} cannot run a small Python command ({job.status.lower()}: {' '.join(last)}); "
                f"see it with: shoal jobs logs {probe}"
            )
        self._client.delete_job(probe)
        return Found(**json.loads(lines[-1].removeprefix("found:")))

    def attempts(self, key: str) -> list[Job]:
        """Return the jobs of one command, oldest first: ``key``, then ``key-2``, ``key-3`` …."""
        found: list[Job] = []
        while (job := self._find(_attempt(key, len(found) + 1))) is not None:
            found.append(job)
        return found

    def submit(self, command: Command, attempt: int) -> Job:
        """Start a job, or return the one that somebody else started under that name just now.

        Raises
        ------
        ResourceError
            If the cluster does not take it.
        """
        name = _attempt(command.key, attempt)
        with tempfile.TemporaryDirectory(prefix="shoal-job-") as folder:
            for file, content in command.files.items():
                (Path(folder) / file).write_text(content)
            with self._told():
                try:
                    self._client.submit_job(
                        # Where the head dies, Ray ends the process that it started: with exec, the command is that.
                        entrypoint=f"exec {shlex.join(command.words)}",
                        submission_id=name,
                        entrypoint_num_cpus=command.cpus or None,
                        runtime_env={
                            "working_dir": folder,
                            "py_modules": [str(command.package)],
                            "excludes": ["__pycache__"],
                        },
                        metadata={_MARK: "job", "verb": command.verb, "run": command.run},
                    )
                except RuntimeError as error:
                    if _TAKEN not in str(error):
                        raise
        return self.job(name)

    def list(self) -> list[Job]:
        """Return Shoal's jobs, oldest first."""
        with self._told():
            found = self._client.list_jobs()
        jobs = [_job(entry) for entry in found if (entry.metadata or {}).get(_MARK) == "job"]
        return sorted(jobs, key=lambda job: (job.started or 0.0, job.id))

    def job(self, name: str) -> Job:
        """Return a job by its id.

        Raises
        ------
        ConfigError
            If there is none of that id; with the nearest.
        """
        found = self._find(name)
        if found is None:
            known = [job.id for job in self.list()]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[-3:]
            those = f"; jobs there: {', '.join(near)}" if near else "; Shoal has no jobs there"
            raise ConfigError(f"no job {name!r} on the cluster at {self.address}{those}")
        return found

    def logs(self, name: str) -> str:
        """Return what a job has printed so far."""
        self.job(name)
        with self._told():
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], object]) -> Job:
        """Hand on what a job prints, from its beginning, until it ends.

        Raises
        ------
        ResourceError
            If the cluster does not answer for a minute; shorter breaks are bridged.
        """
        written = 0

        async def read() -> None:
            nonlocal written
            at = 0  # each reading is from the beginning
            async for lines in self._client.tail_job_logs(name):
                new = lines[max(0, written - at) :]
                at += len(lines)
                if new:
                    write(new)
                    written = at

        ended = self.job(name).has_ended
        while True:
            try:
                with self._told():
                    asyncio.run(read())
                return self.wait(name)
            except ResourceError:
                job = self._patiently(name)
                if ended and job.has_ended:
                    return job
                ended = job.has_ended  # once more, for its last words
                time.sleep(_POLL_SECONDS)

    def wait(self, name: str, seconds: float | None = None) -> Job:
        """Return a job once it has ended.

        Raises
        ------
        ResourceError
            If that takes longer than ``seconds``, or the cluster does not answer for a minute.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while not (job := self._patiently(name)).has_ended:
            if until is not None and time.monotonic() > until:
                raise ResourceError(
                    f"job {name} on the cluster at {self.address} has not ended after {seconds:g} s "
                    f"({job.status.lower()}: {job.message})"
                )
            time.sleep(_POLL_SECONDS)
        return job

    def stop(self, name: str) -> Job:
        """Ask a job to stop, and return it once it has; one that has ended stays as it is."""
        if not self.job(name).has_ended:
            with self._told():
                self._client.stop_job(name)
        return self.wait(name)

    def _patiently(self, name: str) -> Job:
        """Return a job, also where the way to its cluster is broken for less than a minute."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self.job(name)
            except ResourceError:
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL_SECONDS)

    def _find(self, name: str) -> Job | None:
        if _ID.match(name) is None:  # anything else would be another path of the dashboard's
            return None
        with self._told():
            try:
                return _job(self._client.get_job_info(name))
            except RuntimeError as error:
                if _NOT_FOUND in str(error):
                    return None
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what Ray's client raises into a line."""
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            yield
        except RequestError:
            raise
        except AuthenticationError as error:
            raise ResourceError(
                f"the cluster at {self.address} turns this token away, or none was given; set RAY_AUTH_TOKEN to the "
                "cluster's, or keep that in ~/.ray/auth_token"
            ) from error
        except (ConnectionError, ClientError, RequestException) as error:
            raise ResourceError(
                f"the cluster at {self.address} does not answer any more ({type(error).__name__}); look whether its head runs"
            ) from error
        except RuntimeError as error:
            raise ResourceError(
                f"the cluster at {self.address}: {' '.join(str(error).split())[-300:]}"
            ) from error


def _require_client() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("aiohttp", "requests") if find_spec(name) is None]:
        raise ConfigError(
            f"Ray's job client is not installed here ({', '.join(missing)} is missing): {EXTRA}, which brings ray[default]"
        )


def _token() -> str:
    """Return the token where Ray looks for it; empty where there is none.

    Raises
    ------
    ConfigError
        If it cannot be one.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = os.environ.get("RAY_AUTH_TOKEN") or (path.read_text(errors="replace") if path.is_file() else "")
    if not re.fullmatch(r"[!-~]*", token := token.strip()):
        raise ConfigError(
            "the token (RAY_AUTH_TOKEN, or ~/.ray/auth_token) is none: it is one word of ASCII characters"
        )
    return token


def _attempt(key: str, number: int) -> str:
    return key if number == 1 else f"{key}-{number}"


def _job(entry: Any) -> Job:
    told = entry.metadata or {}
    return Job(
        entry.submission_id or entry.job_id,
        str(entry.status.value),
        told.get("verb", ""),
        told.get("run", ""),
        entry.message or "",
        entry.start_time / 1000 if entry.start_time else None,
        entry.end_time / 1000 if entry.end_time else None,
        entry.driver_exit_code,
    )
