"""Where runs are, and what is said of them."""

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from shoal.cluster.config import ClusterConfig, StorageConfig
from shoal.cluster.errors import ConfigError, RequestError, StorageError
from shoal.cluster.progress import Log, Reporter, Several
from shoal.cluster.run_folder import RunFolder
from shoal.cluster.sharding.manifest import MANIFEST
from shoal.cluster.storage import Storage
from shoal.experiment import Experiment, from_dict, run_name


class _Data(BaseModel):
    path: str


class _Provenance(BaseModel):
    data: _Data
    fit: dict[str, Any]
    seconds: dict[str, float]


class _Score(BaseModel):
    value: float | None


_Scores = Annotated[dict[str, _Score], Field(min_length=1)]
_SCORES: TypeAdapter[dict[str, _Scores]] = TypeAdapter(Annotated[dict[str, _Scores], Field(min_length=1)])
PROVENANCE = "provenance.json"
_ANEW = "delete metrics.json, and the same command computes the run again"
MODEL_FILES = ("model/model.json", "model/model.safetensors")
RUN_FILES = (*MODEL_FILES, "data.json", "provenance.json", "history.parquet", "predictions.parquet")


def run_uri(experiment: Experiment, verb: str, name: str, out: str | None = None) -> str:
    """Return where a verb writes: `out`, or its folder under `cluster.storage_path`."""
    return out or f"{experiment.cluster.storage_path.rstrip('/')}/{run_name(name, verb, experiment)}"


def shown(uri: str) -> str:
    """Return a local path as people write it: relative to the current directory where it is inside."""
    here = os.getcwd()
    return os.path.relpath(uri, here) if uri.startswith(f"{here}/") else uri


def finished_run(uri: str, cluster: ClusterConfig | None = None) -> tuple[RunFolder, Experiment]:
    """Open a complete training run and read its experiment.

    Raises
    ------
    StorageError
        If there is no such run, or it is not finished.
    """
    storage = cluster.storage if cluster is not None else StorageConfig()
    try:
        run = RunFolder.open(uri, storage)
        config = run.config()
    except StorageError as error:
        if cluster is not None or "://" not in uri:
            raise
        raise StorageError(
            f"{error}. Where its storage needs an endpoint or a region, give --cluster FILE, with them in cluster.storage"
        ) from None
    if config is None:
        what = "is no run: it has no config.yaml" if run.exists() else "does not exist"
        raise StorageError(f"{run.uri} {what}{_nearest(uri, storage)}")
    if run.exists("metrics.json"):
        if not run.exists("model") and "selection" in (found := run.read_json("metrics.json")):
            raise StorageError(
                f"{run.uri} is of shoal adapt, whose models are runs of their own: "
                f"{run.uri}/fits/{found['selection']['chosen']}/0 is the first one of those that were chosen"
            )
        if not run.exists("model") and "tuning" in run.read_json("metrics.json"):
            raise StorageError(
                f"{run.uri} is of shoal tune, and the model of its best trial is a run of its own: {run.uri}/best"
            )
        refuse_incomplete(run)
    else:
        kind = (
            "holds a sharded dataset, not a trained model"
            if run.exists("manifest.json")
            else "is not finished"
        )
        raise StorageError(f"{run.uri} {kind}; run shoal train with its experiment first")
    if cluster is not None:
        config = {**config, "cluster": cluster.model_dump(mode="json")}
    return run, from_dict(config, name=f"{run.uri}/config.yaml")


def finished_crossval(uri: str, cluster: ClusterConfig | None = None) -> RunFolder | None:
    """Open a complete cross-validation; None where the folder is something else."""
    return _finished_with("crossval", uri, cluster)


def finished_tune(uri: str, cluster: ClusterConfig | None = None) -> RunFolder | None:
    """Open a complete search of `shoal tune`; None where the folder is something else."""
    return _finished_with("tuning", uri, cluster)


def _finished_with(key: str, uri: str, cluster: ClusterConfig | None) -> RunFolder | None:
    """Open a complete run of several fits, whose results have a key of their own; None where the folder is something else."""
    run = RunFolder.open(uri, cluster.storage if cluster is not None else StorageConfig())
    if not run.exists("config.yaml") or not run.exists("metrics.json") or run.exists("model"):
        return None
    return run if key in run.read_json("metrics.json") else None


def refuse_incomplete(run: Storage, names: Sequence[str] = MODEL_FILES) -> None:
    """Refuse a run that says that it is complete, but some of whose files are gone.

    Raises
    ------
    StorageError
        Naming the missing files.
    """
    from shoal.training.description import ESTIMATOR, WEIGHTS

    own = ESTIMATOR if run.exists(ESTIMATOR) else WEIGHTS
    if missing := [name for name in (own if n == WEIGHTS else n for n in names) if not run.exists(name)]:
        are = "is" if len(missing) == 1 else "are"
        raise StorageError(
            f"{run.uri} was finished, but {' and '.join(missing)} {are} gone since: put back what was deleted, or delete that "
            "folder and train again"
        )


def with_overrides(experiment: Experiment, overrides: tuple[str, ...]) -> Experiment:
    """Change how a finished run is judged; nothing that it was trained with.

    Raises
    ------
    ConfigError
        For an override outside `evaluation`.
    """
    for override in overrides:
        if not override.startswith("evaluation."):
            raise ConfigError(
                f"--set {override}: the run is trained; only evaluation.* can change now. Train again for the rest"
            )
    return from_dict(experiment.model_dump(mode="json"), overrides) if overrides else experiment


def _is_read_only(run: Storage) -> bool:
    return run.is_local and not os.access(run.local(), os.W_OK)


@contextmanager
def claimed(
    folder: RunFolder, config: dict[str, Any], reporter: Reporter, last: str, wait: float = 0.0
) -> Iterator[Reporter]:
    """Hold a folder for this experiment, and log there what is reported.

    A folder that this call made, and that a wrong request then left without anything of use, goes away again; so does
    one for shards that none were written to.

    Parameters
    ----------
    folder
        The run.
    config
        The resolved experiment.
    reporter
        Hears everything; the yielded reporter tells it and the log.
    last
        The file that makes the folder complete.
    wait
        Seconds to wait for another process that holds the folder.
    """
    if last == "metrics.json" and folder.is_complete and _is_read_only(folder):
        folder.is_of(config)
        yield reporter  # what is complete is shown from a read-only place, too
        return
    is_new = not folder.exists()
    cause: BaseException | None = None
    try:
        with folder.claim(config, reporter, wait), logged(folder, reporter) as heard:
            try:
                yield heard
            except BaseException as error:
                cause = error
                raise
    except BaseException as error:
        cause = cause or error  # where storage is lost, the log and the lease fail too, for the same reason
        wrong = isinstance(cause, RequestError)
        useless = wrong or not folder.has_results if last == MANIFEST else wrong and not folder.has_results
        if is_new and useless and not folder.exists(last):
            folder.delete()
        if cause is error:
            raise
        raise cause from None


@contextmanager
def logged(run: Storage, reporter: Reporter) -> Iterator[Reporter]:
    """Send what is reported to `log.txt` too.

    What ends the block goes there too. Object stores cannot append: there the log grows in a local file and is put when
    the block ends.
    """
    if run.is_local:
        with _ending_logged(Log(run.local("log.txt"))) as log:
            yield Several([reporter, log])
        return
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="shoal-log-") as scratch:
        file = Path(scratch) / "log.txt"
        file.write_bytes(run.read_bytes("log.txt") if run.exists("log.txt") else b"")
        try:
            with _ending_logged(Log(file)) as log:
                yield Several([reporter, log])
        finally:
            run.write_bytes("log.txt", file.read_bytes())


@contextmanager
def _ending_logged(log: Log) -> Iterator[Log]:
    """Log the error or the interruption that ends the block; a wrong request leaves no trace in a finished run."""
    try:
        yield log
    except RequestError:
        raise
    except BaseException as error:
        if log.path.parent.exists():
            with suppress(StorageError):  # a full disk, say; its own error is the one to hear of
                log.write(f"error: {error}" if isinstance(error, Exception) else "interrupted")
        raise


def scores_of(run: Storage) -> dict[str, Any]:
    """Read `metrics.json`.

    Raises
    ------
    StorageError
        If it holds no scores.
    """
    try:
        found: dict[str, Any] = run.read_json("metrics.json")
        _SCORES.validate_python(found)
    except (StorageError, ValidationError) as error:
        why = str(error) if isinstance(error, StorageError) else f"metrics.json in {run.uri} holds no scores"
        raise StorageError(f"{why}; {_ANEW}") from error
    return found


def provenance_of(run: Storage) -> dict[str, Any]:
    """Read `provenance.json` of a finished run.

    Raises
    ------
    StorageError
        If it is missing or damaged.
    """
    try:
        found: dict[str, Any] = run.read_json(PROVENANCE)
        _Provenance.model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "its content"
        raise StorageError(f"{PROVENANCE} in {run.uri} is damaged ({where}); {_ANEW}") from error
    except StorageError as error:
        raise StorageError(f"{error}; {_ANEW}") from error
    return found


def _nearest(uri: str, storage: StorageConfig) -> str:
    parent, _, name = uri.rstrip("/").rpartition("/")
    folder = Storage.open(parent or ".", storage)
    there = folder.list() if folder.exists() else []
    names = [n for n in there if folder.exists(f"{n}/metrics.json") and folder.exists(f"{n}/config.yaml")]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    where = f"{parent}/" if parent else ""
    return (
        f"; runs there: {', '.join(where + n for n in close)}"
        if close
        else "; give the folder that shoal train named"
    )
