"""The objects of a job: its command, its config, its resources."""

import json
import os
import re
import shlex
from datetime import timedelta

import pytest
from support.kubernetes import complaints, pod_templates, ray_schemas, read_all, requested

from shoal.cli.main import main
from shoal.cluster.errors import ConfigError
from shoal.cluster.resources import Shape, Totals, check
from shoal.cluster.sharding.service import BUDGET
from shoal.experiment import from_dict, load_experiment
from shoal.k8s.render import object_name
from shoal.verbs.elsewhere import Options
from shoal.verbs.manifests import render
from shoal.verbs.runs import run_uri
from shoal.verbs.writable import require_cache

CRDS = os.environ.get("SHOAL_KUBERAY_CRDS")
CLUSTERS = {
    "auto": {},
    "four": {"num_workers": 4, "cpus_per_worker": 2},
    "gpus": {"num_workers": 2, "cpus_per_worker": 8, "gpus_per_worker": 1},
    "pair": {"num_workers": [2, 8], "cpus_per_worker": 3},
    "task": {"placement": "task", "cpus_per_worker": 4},
}
COMPARED = Options(compare={"wide": {"model.mlp.hidden": [64]}})
DIFFERENT = [
    ("train", None, {}),
    ("train", "s3://b/other", {}),
    ("train", None, {"options": Options(find_learning_rate=True)}),
    ("crossval", None, {}),
    ("crossval", None, {"options": COMPARED}),
    ("crossval", None, {"options": Options(compare={"wide": {"model.mlp.hidden": [32]}})}),
]


def experiment(cluster=None, **sections):
    there = {"storage_path": "s3://bucket/runs", **(cluster or {})}
    return from_dict(
        {"data": {"path": "s3://lake/rows.parquet", "target": "y"}, "cluster": there, **sections}
    )


def rendered(cluster=None, verb="train", out=None, sections=(), **options):
    return render(
        verb, experiment(cluster, **dict(sections)), out, name="fraud", **{"image": "r/shoal:1", **options}
    )


def job_of(result):
    return next(o for o in read_all(result.yaml) if o["kind"] == "RayJob")


def config_of(result, tmp_path):
    config = next(o for o in read_all(result.yaml) if o["kind"] == "ConfigMap")
    ((name, text),) = config["data"].items()
    (tmp_path / name).write_text(text)
    return load_experiment(tmp_path / name)


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_the_workers_pods_ask_for_the_admission_sum(cluster):
    result = rendered(cluster, worker_memory="5Gi")
    (group,) = job_of(result)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = requested(group["template"])
    total = tuple(group["replicas"] * amount for amount in pod)
    demand = result.demand
    assert total == (demand.total("cpus"), demand.total("gpus"), demand.total("memory"))
    assert (
        group["template"]["spec"]["containers"][0]["resources"]["limits"]
        == (group["template"]["spec"]["containers"][0]["resources"]["requests"])
    )
    # What Ray is told is what the pod has, so the job's own admission lets it through, and nothing larger.
    start = group["rayStartParams"]
    assert (int(start["num-cpus"]), int(start["num-gpus"])) == pod[:2]
    nodes = ((float(start["num-cpus"]), float(start["num-gpus"])),) * group["replicas"]
    there = Totals(total[0], total[1], total[2], where="pods", nodes=nodes)
    check(demand, there)
    assert pod[2] >= int(start["num-cpus"]) * BUDGET  # the sharding tasks, one a CPU


def test_by_hand():
    result = rendered({"num_workers": 4, "cpus_per_worker": 2})
    (group,) = job_of(result)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    assert requested(group["template"]) == (2, 0, 4 << 30)
    (pair,) = job_of(rendered({"num_workers": [2, 8]}))["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (pair["replicas"], pair["minReplicas"], pair["maxReplicas"]) == (2, 2, 8)


def test_the_head_takes_no_work():
    head = job_of(rendered())["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_the_run_is_fixed_and_is_the_one_of_the_same_command_here(cluster, tmp_path):
    result = rendered(cluster)
    job, there = job_of(result), config_of(result, tmp_path)
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:5] == ["python", "-m", "shoal", "train", "/etc/shoal/fraud.yaml"]
    assert command[5:] == ["--out", run_uri(experiment(cluster), "train", "fraud")]
    assert run_uri(there, "train", "fraud") == command[6]
    # What was left open is settled, so that what runs is what was asked for.
    assert "auto" not in (there.cluster.num_workers, there.cluster.gpus_per_worker)
    assert there.cluster.address is None
    spec = job["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True  # which the time to live needs
    assert spec["ttlSecondsAfterFinished"] > 0
    assert "suspend" not in spec
    assert "deletionStrategy" not in spec  # excludes shutdownAfterJobFinishes
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_equal_experiments_give_equal_bytes():
    assert rendered(CLUSTERS["four"]).yaml == rendered(CLUSTERS["four"]).yaml
    assert rendered(CLUSTERS["four"]).yaml != rendered(CLUSTERS["four"], sections={"seed": 1}.items()).yaml


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_every_pod_is_restricted(cluster):
    templates = pod_templates(read_all(rendered(cluster).yaml))
    assert len(templates) == 3  # the submitter, the head, the workers
    assert {where: complaints(template) for where, template in templates if complaints(template)} == {}


def test_the_policy_check_can_fail():
    (_, head), *_ = pod_templates(read_all(rendered().yaml))
    for change, word in (
        ({"hostNetwork": True}, "hostNetwork"),
        ({"securityContext": {}}, "runAsNonRoot"),
        ({"serviceAccountName": "default"}, "serviceAccountName"),
        ({"containers": [{"image": "shoal"}]}, "resources.cpu"),
        ({"containers": [{"image": "r:5000/shoal:latest"}]}, "image r:5000/shoal:latest"),
        (
            {"containers": [{"image": "shoal:1", "securityContext": {"privileged": True}}]},
            "allowPrivilegeEscalation",
        ),
        ({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "volume x: hostPath"),
    ):
        assert word in complaints({"spec": {**head["spec"], **change}})


def test_the_claim_is_there_where_it_is_needed():
    def mounts(result):
        return [[v["name"] for v in t["spec"]["volumes"]] for _, t in pod_templates(read_all(result.yaml))]

    assert [("shoal" in names) for names in mounts(rendered())] == [False, False, False]
    data = {"path": "file:///shoal/rows.parquet", "target": "y"}
    compared = Options(compare={"own": {"model": {"pretrained": {"path": "/shoal/bert"}}}})
    for other in (
        rendered(sections={"data": data}.items()),
        rendered({"cache_path": "/shoal/cache"}),
        rendered(verb="crossval", options=compared),
    ):
        assert [("shoal" in names) for names in mounts(other)] == [False, True, True]
    here = rendered({"storage_path": "/shoal/runs"})
    assert [("shoal" in names) for names in mounts(here)] == [False, True, True]
    assert "--out /shoal/runs/fraud-train-" in job_of(here)["spec"]["entrypoint"]


@pytest.mark.skipif(CRDS is None, reason="SHOAL_KUBERAY_CRDS names no folder with KubeRay's definitions")
def test_kuberay_takes_the_objects():
    schemas = ray_schemas(CRDS)
    for cluster in CLUSTERS.values():
        job = job_of(rendered(cluster))
        validator = schemas[job["apiVersion"], job["kind"]]
        assert [error.message for error in validator.iter_errors(job)] == []
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["templates"] = {}
    job["spec"]["backoffLimit"] = "two"
    assert len(list(validator.iter_errors(job))) == 2  # it can say no


@pytest.mark.parametrize(
    ("cluster", "options", "words"),
    [
        ({"cpus_per_worker": 0.5}, {}, "cluster.cpus_per_worker: 0.5"),
        ({"gpus_per_worker": 0.25}, {}, "cluster.gpus_per_worker: 0.25"),
        ({"placement": "inline"}, {}, "cluster.placement: inline"),
        ({"storage_path": "runs"}, {}, "cluster.storage_path: runs is a path of this machine"),
        ({"storage_path": "/mnt/x", "shared_paths": ["/mnt"]}, {}, "under /shoal"),
        ({}, {"image": "shoal"}, "--image shoal: name a version"),
        ({}, {"image": "registry:5000/shoal:latest"}, "name a version"),
        ({}, {"image": "Mine/Shoal:1"}, "--image Mine/Shoal:1"),
        ({}, {"image": ""}, "name a version"),
        ({}, {"worker_memory": "100Mi"}, "--worker-memory 100Mi: sharding takes"),
        ({}, {"deadline": timedelta(days=36500)}, "24855d"),
        ({"cache_path": "/root/cache"}, {}, "cluster.cache_path: /root/cache; pods write below /tmp"),
        ({"cache_path": "/tmp/../var"}, {}, "cluster.cache_path"),
        ({}, {"worker_memory": "4GB"}, "--worker-memory 4GB"),
        ({"num_workers": 2, "cpus_per_worker": 16}, {}, "--worker-memory 4Gi: sharding takes"),
        ({"num_workers": 2, "placement": "task"}, {}, "cluster.num_workers: 2"),
    ],
)
def test_what_cannot_be_is_refused(cluster, options, words):
    with pytest.raises(ConfigError) as refused:
        rendered(cluster, **options)
    assert words in str(refused.value)


@pytest.mark.parametrize("image", ["r:5000/a/shoal", "r.example/shoal:1", "shoal:latest"])
def test_an_image_by_its_digest_is_taken(image):
    assert "@sha256:" in rendered(image=f"{image}@sha256:{'0' * 64}").yaml


def test_copies_of_shards_go_where_a_pod_can_write(tmp_path):
    assert config_of(rendered(), tmp_path).cluster.cache_path == "/tmp/shoal"
    require_cache(
        config_of(rendered(), tmp_path).cluster, Shape(1, 1.0, 0.0, "task")
    )  # as the command there does
    assert config_of(rendered({"cache_path": "/shoal/cache"}), tmp_path).cluster.cache_path == "/shoal/cache"


@pytest.mark.parametrize("name", ["überwachung", "日本語", "a b", "quo'te", "$HOME;x", "-dash", "x" * 200])
def test_odd_names_are_keys_of_a_config_map_and_one_word_of_the_command(name):
    result = render("train", experiment(), name=name, image="r/shoal:1")
    config, job = read_all(result.yaml)
    words = shlex.split(job["spec"]["entrypoint"])
    assert re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", words[4].removeprefix("/etc/shoal/"))
    assert [words[4]] == [f"/etc/shoal/{key}" for key in config["data"]]
    assert words[5:] == ["--out", run_uri(experiment(), "train", name)]


def test_other_work_has_another_name():
    names = {job_of(rendered(verb=verb, out=out, **o))["metadata"]["name"] for verb, out, o in DIFFERENT}
    assert len(names) == len(DIFFERENT)
    job = job_of(rendered(verb="crossval", options=COMPARED))
    assert job["spec"]["entrypoint"].endswith("-compare --compare /etc/shoal/fraud-compare.yaml")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("My_Fraud (2)-train-1a2b3c4d", "my-fraud-2-train-1a2b3c4d"),
        ("x" * 60 + "-train-1a2b3c4d", "x" * 32 + "-train-1a2b3c4d"),
        ("__a-train-1a2b3c4d", "a-train-1a2b3c4d"),
        ("2026-train-1a2b3c4d", "r-2026-train-1a2b3c4d"),  # services have names that begin with a letter
        ("2" * 60 + "-train-1a2b3c4d", "r-" + "2" * 30 + "-train-1a2b3c4d"),
        ("日本-train-1a2b3c4d", "train-1a2b3c4d"),
    ],
)
def test_names_are_ones_that_kubernetes_takes(name, made):
    assert object_name(name) == made
    assert len(made) <= 47


def test_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "fraud.yaml"
    file.write_text(
        "data: {path: s3://lake/rows.parquet, target: y}\ncluster: {storage_path: s3://bucket/runs}\n"
    )
    words = ["k8s", "render", "crossval", str(file), "--set", "cluster.num_workers=3", "--time-limit", "90m"]
    assert main(words) == 0
    job = read_all(capsys.readouterr().out)[1]
    assert job["spec"]["activeDeadlineSeconds"] == 5400
    assert job["spec"]["entrypoint"].startswith(
        "python -m shoal crossval /etc/shoal/fraud.yaml --out s3://bucket/runs/"
    )
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"][1]["kind"] == "RayJob"
    assert main(["k8s", "render", "predict", str(file)]) == 2
    assert "use one of" in capsys.readouterr().err


def test_modules_of_ones_own_are_asked_for_in_the_image():
    result = rendered(sections={"model": {"import": "my.models:build"}}.items())
    assert result.notices == ("the image has to hold the module my.models",)
