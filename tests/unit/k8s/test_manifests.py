"""The base, the overlays and the image, as they stand in the repository."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.kubernetes import complaints, pod_templates, ray_schemas, read_all, requested

REPOSITORY = Path(__file__).parents[3]
K8S = REPOSITORY / "k8s"
CRDS = os.environ.get("SHOAL_KUBERAY_CRDS")
KUSTOMIZE = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
OVERLAYS = ("cpu", "gpu")
S3 = "s3"  # the cpu overlay with that component


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What kustomize makes of each overlay."""
    if shutil.which(KUSTOMIZE[0]) is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    copy = tmp_path_factory.mktemp("built") / "k8s"
    shutil.copytree(K8S, copy)
    (copy / "overlays" / S3).mkdir()
    lines = (K8S / "overlays" / "cpu" / "kustomization.yaml").read_text()
    assert "\n# components: " in lines
    (copy / "overlays" / S3 / "kustomization.yaml").write_text(
        lines.replace("\n# components: ", "\ncomponents: ")
    )
    found = {}
    for overlay in (*OVERLAYS, S3):
        done = subprocess.run(
            [*KUSTOMIZE, copy / "overlays" / overlay], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr  # nothing in it is deprecated
        found[overlay] = read_all(done.stdout)
    return found


def kinds(documents, kind):
    return [document for document in documents if document["kind"] == kind]


@pytest.mark.parametrize("overlay", [*OVERLAYS, S3])
def test_an_overlay_is_whole(built, overlay):
    found = built[overlay]
    assert all(d["metadata"]["namespace"] == "shoal" for d in found)
    assert len(kinds(found, "RayCluster")) == len(kinds(found, "ServiceAccount")) == 1
    templates = pod_templates(found)
    assert len(templates) == (2 if overlay == S3 else 5)
    assert {where: complaints(t) for where, t in templates if complaints(t)} == {}
    accounts = {d["metadata"]["name"] for d in kinds(found, "ServiceAccount")}
    claims = {d["metadata"]["name"] for d in kinds(found, "PersistentVolumeClaim")}
    assert claims == (set() if overlay == S3 else {"shoal"})
    for _, template in templates:
        assert template["spec"]["serviceAccountName"] in accounts
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "shoal"
        volumes = template["spec"]["volumes"]
        wanted = {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
        assert wanted <= claims


def test_gpus_are_asked_for_by_workers_alone(built):
    asked = {where: requested(template)[1] for where, template in pod_templates(built["gpu"])}
    assert {bool("worker" in where) for where, count in asked.items() if count} == {True}
    assert sum(asked.values()) == 2
    assert not any(requested(template)[1] for _, template in pod_templates(built["cpu"]))
    images = {c["image"] for _, t in pod_templates(built["gpu"]) for c in t["spec"]["containers"]}
    assert images == {"registry.example/shoal:0.1.0-cuda"}


def test_pods_have_no_rights_and_people_have_few(built):
    (account,) = kinds(built["cpu"], "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    (binding,) = kinds(built["cpu"], "RoleBinding")
    assert [subject["kind"] for subject in binding["subjects"]] == ["Group"]
    assert not kinds(built["cpu"], "ClusterRole")
    (role,) = kinds(built["cpu"], "Role")
    for rule in role["rules"]:
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
        assert "secrets" not in rule["resources"]


def test_what_is_not_named_is_denied(built):
    policies = {d["metadata"]["name"]: d["spec"] for d in kinds(built["cpu"], "NetworkPolicy")}
    deny = policies["shoal-deny"]
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in deny
    assert "egress" not in deny
    for name, spec in policies.items():
        assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/part-of"] == "shoal"
        if name != "shoal-among-themselves":
            assert all(rule.get("ports") for way in ("ingress", "egress") for rule in spec.get(way, []))
    # The way to object storage is open only where that is used.
    assert "shoal-object-storage" not in policies
    assert "shoal-object-storage" in {d["metadata"]["name"] for d in kinds(built[S3], "NetworkPolicy")}


@pytest.mark.skipif(CRDS is None, reason="SHOAL_KUBERAY_CRDS names no folder with KubeRay's definitions")
def test_kuberay_takes_the_objects(built):
    schemas = ray_schemas(CRDS)
    count = 0
    for documents in built.values():
        for document in documents:
            if document["apiVersion"] == "ray.io/v1":
                count += 1
                errors = schemas[document["apiVersion"], document["kind"]].iter_errors(document)
                assert [error.message for error in errors] == []
    assert count == 5


def test_kubernetes_takes_the_other_objects(built):
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: 100 MB of schemas"
    )
    for documents in built.values():
        for document in documents:
            if not document["apiVersion"].startswith("ray.io"):
                validate.validate(document, "1.34", strict=True)
    broken = {**kinds(built["cpu"], "ServiceAccount")[0], "automountServiceToken": False}
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, "1.34", strict=True)


def test_versions_are_those_that_are_tested():
    pinned = dict(
        line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line
    )
    for name in ("ray_cluster.yaml", "ray_job.yaml"):
        versions = re.findall(r"rayVersion: (\S+)", (K8S / "base" / name).read_text())
        assert versions == [pinned["ray"]]
    version = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]
    for overlay in OVERLAYS:
        assert f"newTag: {version}-" in (K8S / "overlays" / overlay / "kustomization.yaml").read_text()


def test_the_standing_cluster_and_the_jobs_are_the_same():
    (cluster,) = read_all((K8S / "base" / "ray_cluster.yaml").read_text())
    (job,) = read_all((K8S / "base" / "ray_job.yaml").read_text())
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]


def test_the_image_is_pinned_and_has_no_root():
    text = (K8S / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)", text, re.MULTILINE)
    assert {"cpu", "cuda"} <= {name for _, name in stages}
    named = {name for _, name in stages}
    for base, _ in stages:
        assert base in named or re.fullmatch(r"python:\$\{PYTHON\}-slim-\w+", base)
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+$", text, re.MULTILINE)
    assert re.search(r"^USER 10001", text, re.MULTILINE)
    assert text.count("pip install") == text.count("pip install -c constraints.txt")


def test_the_image_runs_every_verb():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = re.findall(r"'\.\[([\w,]+)\]'", (K8S / "Dockerfile").read_text())
    assert [set(names.split(",")) for names in installed] == [set(extras) - {"test"}] * 2  # cpu and cuda
