"""Kubernetes objects: read strictly, and looked at with suspicion."""

from pathlib import Path

from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from shoal.k8s.render import memory_bytes


def read_all(text):
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document]


def pod_templates(documents):
    """Every pod template, wherever it is: those of a RayJob are three levels down."""
    found = []

    def walk(value, where):
        if isinstance(value, dict):
            if "containers" in value.get("spec", {}) if isinstance(value.get("spec"), dict) else False:
                found.append((where, value))
            for key, item in value.items():
                walk(item, f"{where}.{key}")
        elif isinstance(value, list):
            for number, item in enumerate(value):
                walk(item, f"{where}[{number}]")

    for document in documents:
        walk(document, f"{document['kind']}/{document['metadata']['name']}")
    return found


def complaints(template):
    """What the restricted pod security standard, and a careful reader, would not let through."""
    spec = template["spec"]
    pod = spec.get("securityContext", {})
    wrong = []
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            wrong.append(name)
    wrong += [f"volume {v['name']}: hostPath" for v in spec.get("volumes", []) if "hostPath" in v]
    if spec.get("automountServiceAccountToken") is not False:
        wrong.append("automountServiceAccountToken")
    if spec.get("serviceAccountName", "default") == "default":
        wrong.append("serviceAccountName")
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        own = {**pod, **container.get("securityContext", {})}
        if own.get("runAsNonRoot") is not True or not own.get("runAsUser"):
            wrong.append("runAsNonRoot")
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            wrong.append("allowPrivilegeEscalation")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            wrong.append("capabilities")
        if own.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            wrong.append("seccompProfile")
        if own.get("readOnlyRootFilesystem") is not True:
            wrong.append("readOnlyRootFilesystem")
        amounts = container.get("resources", {})
        for what in ("cpu", "memory"):
            if what not in amounts.get("requests", {}) or what not in amounts.get("limits", {}):
                wrong.append(f"resources.{what}")
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in container["image"] and tag in ("", "latest"):
            wrong.append(f"image {container['image']}")
        names = {volume["name"] for volume in spec.get("volumes", [])}
        wrong += [
            f"no volume {m['name']}" for m in container.get("volumeMounts", []) if m["name"] not in names
        ]
    return wrong


def cpus(amount):
    text = str(amount)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def requested(template):
    """CPUs, GPUs and bytes that a pod asks for."""
    asked = [container["resources"]["requests"] for container in template["spec"]["containers"]]
    return (
        sum(cpus(one["cpu"]) for one in asked),
        sum(int(one.get("nvidia.com/gpu", 0)) for one in asked),
        sum(memory_bytes(one["memory"]) for one in asked),
    )


def ray_schemas(folder):
    """The schemas of KubeRay's own definitions, closed against fields that they do not have."""
    found = {}
    for path in sorted(Path(folder).glob("ray.io_*.yaml")):
        definition = _load(path)["spec"]
        for version in definition["versions"]:
            schema = _closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = f"{definition['group']}/{version['name']}", definition["names"]["kind"]
            found[key] = Draft202012Validator(schema)
    return found


def _load(path):
    import yaml  # Ray's own; its parser in C reads a megabyte in a second

    return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _closed(schema):
    """From an OpenAPI structural schema to a JSON schema that takes nothing unknown."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    made = {key: _closed(value) for key, value in schema.items() if key != "properties"}
    if properties is not None:
        made["properties"] = {name: _closed(value) for name, value in properties.items()}
        if "additionalProperties" not in made and not made.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if isinstance(made.get("required"), list):  # the server fills defaults in before it looks
        made["required"] = [
            n for n in made["required"] if "default" not in made.get("properties", {}).get(n, {})
        ]
    return made
