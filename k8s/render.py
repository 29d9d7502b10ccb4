"""The Kubernetes objects of one job: the base's RayJob, with this job's command, config and resources."""

import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from shoal.cluster.errors import ConfigError

SHARED = "/shoal"  # where every pod has the claim for data and runs
WRITABLE = ("/tmp", "/home/shoal")  # of each pod's own; all else is read-only
CONFIG = "/etc/shoal"
GPU = "nvidia.com/gpu"
_LONGEST_NAME = 47  # KubeRay makes names of pods and services from it, which begin with a letter
_LATEST = 2**31 - 1
_BASE = Path(__file__).parent / "base" / "ray_job.yaml"
_MEMORY = re.compile(r"^([1-9]\d*)(Mi|Gi)$")
_BYTES = {"Mi": 2**20, "Gi": 2**30}
_PINNED = re.compile(
    r"^((?=[^/]*[.:])[A-Za-z0-9.-]+(:\d+)?/)?[a-z0-9._-]+(/[a-z0-9._-]+)*"  # registry, repository
    r"(:(?P<tag>\w[\w.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?$",
    re.ASCII,
)


@dataclass(frozen=True)
class Work:
    """One job.

    Parameters
    ----------
    name
        Of its objects; what Kubernetes does not allow in one is replaced.
    command
        The command line, which finds `files` in ``/etc/shoal``.
    files
        Their texts by name.
    image
        With its version.
    workers, most
        Pods, one a worker; and how many there may come to be.
    cpus, gpus
        Of each worker, whole numbers: pods have no parts of one.
    memory
        Of each worker: ``4Gi``.
    deadline
        Seconds after which the job is ended.
    needs_claim
        Whether data or runs are under ``/shoal``.
    """

    name: str
    command: Sequence[str]
    files: Mapping[str, str]
    image: str
    workers: int
    most: int
    cpus: int
    gpus: int = 0
    memory: str = "4Gi"
    deadline: int = 86_400
    needs_claim: bool = False


def objects(work: Work) -> list[dict[str, Any]]:
    """Return the ConfigMap and the RayJob of a job.

    Raises
    ------
    ConfigError
        If the image has no version, or the amount of memory cannot be read.
    """
    match = _PINNED.match(work.image)
    if match is None or (match["digest"] is None and match["tag"] in (None, "latest")):
        raise ConfigError(
            f"--image {work.image}: name a version, such as registry/shoal:0.1.0-cpu or …@sha256:…, so that a job that is tried "
            "again runs the same code"
        )
    if work.deadline > _LATEST:
        raise ConfigError(
            f"--time-limit: Kubernetes counts at most {_LATEST} s, which is 24855d; ask for less"
        )
    memory_bytes(work.memory)
    name = object_name(work.name)
    labels = {"app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/name": name}
    job = YAML(typ="safe", pure=True).load(_BASE.read_text())
    job["metadata"] = {"name": name, "labels": labels}
    spec = job["spec"]
    del spec["suspend"]
    spec["entrypoint"] = shlex.join(work.command)
    spec["activeDeadlineSeconds"] = work.deadline
    cluster = spec["rayClusterSpec"]
    head, group = cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]
    group |= {"replicas": work.workers, "minReplicas": work.workers, "maxReplicas": work.most}
    group["rayStartParams"] = {"num-cpus": str(work.cpus), "num-gpus": str(work.gpus)}
    amounts = {"cpu": str(work.cpus), "memory": work.memory}
    if work.gpus:
        amounts[GPU] = str(work.gpus)
        group["template"]["spec"]["tolerations"] = [
            {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
        ]
    _container(group)["resources"] = {"requests": amounts, "limits": dict(amounts)}
    _container(head)["volumeMounts"].append({"name": "config", "mountPath": CONFIG, "readOnly": True})
    head["template"]["spec"]["volumes"].append({"name": "config", "configMap": {"name": name}})
    for template in (spec["submitterPodTemplate"], head["template"], group["template"]):
        template["metadata"]["labels"] = dict(labels)
        template["spec"]["containers"][0]["image"] = work.image
        if not work.needs_claim:
            _drop(template["spec"]["volumes"], "shoal")
            _drop(template["spec"]["containers"][0]["volumeMounts"], "shoal")
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": dict(labels)},
        "data": {file: LiteralScalarString(text) for file, text in work.files.items()},
    }
    return [config, job]


def to_yaml(documents: Sequence[Mapping[str, Any]]) -> str:
    """Write objects as one file; equal objects give equal bytes."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda _data: True
    stream = io.StringIO()
    yaml.dump_all([dict(document) for document in documents], stream)
    return stream.getvalue()


def object_name(name: str) -> str:
    """Return a name as Kubernetes wants one: its end, which tells runs apart, is kept."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())[-_LONGEST_NAME:].strip("-")
    return plain if plain[:1].isalpha() else f"r-{plain[2 - _LONGEST_NAME :].lstrip('-')}"


def memory_bytes(amount: str) -> int:
    """Read an amount of memory.

    Raises
    ------
    ConfigError
        If it is not a whole number of Mi or Gi.
    """
    match = _MEMORY.match(amount)
    if match is None:
        raise ConfigError(f"--worker-memory {amount}: write a whole number of Mi or Gi, such as 4Gi")
    return int(match[1]) * _BYTES[match[2]]


def _container(group: Mapping[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return first


def _drop(entries: list[dict[str, Any]], name: str) -> None:
    entries[:] = [entry for entry in entries if entry["name"] != name]
