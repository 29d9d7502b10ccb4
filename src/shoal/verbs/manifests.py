"""k8s render: the Kubernetes objects of a verb, with the resources of its admission sum."""

import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shoal.cluster.errors import ConfigError
from shoal.cluster.resources import Demand, Part, Shape, Totals, format_size, resolve_workers
from shoal.cluster.sharding.names import plural
from shoal.experiment import Experiment, given
from shoal.k8s.render import CONFIG, SHARED, WRITABLE, Work, memory_bytes, objects, to_yaml
from shoal.training.allowed import refuse
from shoal.verbs.elsewhere import NONE, Errand, Options, modules_of, paths_of

DAY = timedelta(days=1)
CACHE = "/tmp/shoal"


@dataclass(frozen=True)
class RenderResult:
    """A job's objects, and what they reserve for its workers."""

    objects: Sequence[dict[str, Any]]
    demand: Demand
    run: str
    notices: tuple[str, ...] = ()

    @property
    def yaml(self) -> str:
        """The objects as one file for ``kubectl apply``."""
        return to_yaml(self.objects)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"objects": list(self.objects), "run": self.run, "notices": list(self.notices)}


def render(
    verb: str,
    experiment: Experiment | str | Path,
    out: str | None = None,
    *,
    name: str | None = None,
    options: Options = NONE,
    image: str | None = None,
    worker_memory: str = "4Gi",
    deadline: timedelta = DAY,
) -> RenderResult:
    """Return the objects that run a verb on a Kubernetes cluster with KubeRay.

    A worker is a pod. The run is fixed by the experiment, so that a job that is tried again goes on where it was.

    Parameters
    ----------
    verb
        One that takes an experiment: train, crossval ….
    experiment
        What to do, or the path of its file. Its data and runs are in object storage, or under ``/shoal``.
    out
        Run folder; one under `cluster.storage_path` by default.
    name
        What the run's folder begins with; by default the experiment file's stem.
    options
        What the verb is told beside the experiment.
    image
        Built from k8s/Dockerfile, with a version.
    worker_memory
        Of each worker, as Kubernetes writes it.
    deadline
        After which the job is ended.

    Raises
    ------
    ConfigError
        If something is of this machine alone, or a worker is no whole number of CPUs and GPUs.
    """
    experiment, name = given(experiment, name)
    cache = experiment.cluster.cache_path or CACHE
    inside = experiment.cluster.model_copy(
        update={"shared_paths": (SHARED,), "address": None, "cache_path": cache}
    )
    experiment = experiment.model_copy(update={"cluster": inside})
    errand = Errand(verb, experiment, name, out, options)
    errand.refuse(f"; in pods, data and runs are in object storage (s3://, gs://) or under {SHARED}")
    shape = _shape(experiment)
    refuse(experiment.training, shape)
    each = (shape.cpus_per_worker, shape.gpus_per_worker, memory_bytes(worker_memory))
    demand = Demand((Part("workers", shape.num_workers, *each, most=shape.max_workers),))
    _refuse_little(int(shape.cpus_per_worker), worker_memory)
    if not any(posixpath.normpath(cache).startswith(f"{folder}/") for folder in (*WRITABLE, SHARED)):
        raise ConfigError(
            f"cluster.cache_path: {cache}; pods write below {', '.join(WRITABLE)} and {SHARED} alone: leave it out for {CACHE}"
        )
    pairs = shape.num_workers if not shape.is_elastic else (shape.num_workers, shape.max_workers)
    work = Work(
        name=errand.key,
        command=errand.words(f"{CONFIG}/"),
        files=errand.files(num_workers=pairs, gpus_per_worker=shape.gpus_per_worker),
        image=_image(shape.gpus_per_worker > 0) if image is None else image,
        workers=shape.num_workers,
        most=max(shape.num_workers, shape.max_workers),
        cpus=int(shape.cpus_per_worker),
        gpus=int(shape.gpus_per_worker),
        memory=worker_memory,
        deadline=math.ceil(deadline.total_seconds()),
        needs_claim=any(path.removeprefix("file://").startswith(SHARED) for path in _paths(errand, cache)),
    )
    notices = []
    if modules := modules_of(*errand.experiments.values()):
        notices.append(f"the image has to hold the module {', '.join(modules)}")
    if shape.is_elastic:
        notices.append(
            f"it starts with {plural(shape.num_workers, 'worker')}, and grows up to {shape.max_workers} where "
            "spec.workerGroupSpecs[0].replicas of its RayCluster is raised"
        )
    return RenderResult(objects(work), demand, errand.run, tuple(notices))


def _paths(errand: Errand, cache: str) -> list[str]:
    """Return the places that pods read from or write to."""
    return [cache] + [path for one in errand.experiments.values() for _, path in paths_of(one, errand.out)]


def _shape(experiment: Experiment) -> Shape:
    """Settle what `auto` leaves open where there is no cluster to look at: one worker, without a GPU."""
    if experiment.cluster.placement == "inline":
        raise ConfigError(
            "cluster.placement: inline works in the driver's own process, and the head's pod has room for the driver alone; "
            "leave it at auto"
        )
    there = experiment.cluster.model_copy(
        update={"address": "auto"}
    )  # as it is for the driver, in the cluster
    shape = resolve_workers(there, Totals(math.inf, 0.0))
    for key, amount in (
        ("cpus_per_worker", shape.cpus_per_worker),
        ("gpus_per_worker", shape.gpus_per_worker),
    ):
        if amount != int(amount):
            raise ConfigError(
                f"cluster.{key}: {amount:g}; a worker is a pod of its own, which takes whole ones: set a whole number"
            )
    return shape


def _refuse_little(cpus: int, memory: str) -> None:
    """Refuse pods in which Ray would not place the sharding tasks, of which there is one a CPU."""
    from shoal.cluster.sharding.service import BUDGET

    each = cpus * BUDGET
    if memory_bytes(memory) < each:
        raise ConfigError(
            f"--worker-memory {memory}: sharding takes {format_size(BUDGET)} a CPU, {format_size(each)} a worker; give more"
        )


def _image(gpu: bool) -> str:
    try:
        number = version("shoal")
    except PackageNotFoundError:
        number = "0.1.0"
    return f"shoal:{number}-{'cuda' if gpu else 'cpu'}"
