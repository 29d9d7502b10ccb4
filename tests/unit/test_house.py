"""The walls of the house: which room imports which, and where Ray is."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("cluster", "training", "tuning", "transfer", "evaluation", "k8s")
TOP = "cli"  # src/shoal itself: experiment, verbs, cli

# cluster <- training <- {tuning, transfer, evaluation} <- cli; tuning may use evaluation's splits and scorers.
ALLOWED = {
    "cluster": {"cluster"},
    "training": {"cluster", "training"},
    "evaluation": {"cluster", "training", "evaluation"},
    "tuning": {"cluster", "training", "evaluation", "tuning"},
    "transfer": {"cluster", "training", "transfer"},
    "k8s": {"k8s", "cluster", "training", "evaluation", "tuning", "transfer"},  # configs only, see below
    TOP: {*ROOMS, TOP},
}
# Everything else is plain arithmetic that runs and is tested without Ray.
IMPORTS_RAY = {
    "cluster/jobs.py",
    "cluster/relay.py",
    "cluster/session.py",
    "cluster/tasks.py",
    "training/placements.py",
    "tuning/sweep.py",
}
# A config is read by every command, `shoal --help` included.
LIGHT = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions"}
HEAVY = {"torch", "ray", "pandas", "sklearn", "pyarrow", "numpy", "scipy", "matplotlib", "deepspeed"}


def modules():
    """Every module of the product: its room and its path."""
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            yield room, path
    for path in sorted((REPOSITORY / "src" / "shoal").rglob("*.py")):
        if path.relative_to(REPOSITORY / "src" / "shoal").parts[0] not in ROOMS:
            yield TOP, path


def imports(path):
    """Names of the modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module):
    parts = module.split(".")
    if parts[0] != "shoal":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else TOP


ALL = [pytest.param(room, path, id=str(path.relative_to(REPOSITORY))) for room, path in modules()]


def test_the_modules_are_found():
    names = {path.relative_to(REPOSITORY).as_posix() for _, path in modules()}
    assert {"cluster/errors.py", "training/config.py", "src/shoal/cli/main.py"} <= names
    assert len(names) > 50
    assert names >= IMPORTS_RAY


@pytest.mark.parametrize(("room", "path"), ALL)
def test_imports_point_one_way(room, path):
    wrong = {m for m in imports(path) if room_of(m) is not None and room_of(m) not in ALLOWED[room]}
    assert not wrong, f"{room} must not import {wrong}"


@pytest.mark.parametrize(("room", "path"), ALL)
def test_nothing_imports_the_command_line(room, path):
    inside = path.is_relative_to(REPOSITORY / "src" / "shoal" / "cli")
    inside = inside or path == REPOSITORY / "src" / "shoal" / "__main__.py"  # python -m shoal
    assert inside or not {m for m in imports(path) if m.startswith("shoal.cli")}


@pytest.mark.parametrize(("room", "path"), ALL)
def test_rooms_are_imported_by_their_one_name(room, path):
    assert not {m for m in imports(path) if m.split(".")[0] in ROOMS}


@pytest.mark.parametrize(("room", "path"), [p for p in ALL if p.values[0] == "k8s"])
def test_kubernetes_reads_configs_only(room, path):
    others = {m for m in imports(path) if room_of(m) in set(ROOMS) - {"k8s"}}
    assert all(m.split(".")[-2] in ("config", "errors", "components") for m in others)


def test_ray_stays_at_the_edges():
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for _, path in modules()
        if any(m.split(".")[0] == "ray" for m in imports(path))
    }
    assert found == IMPORTS_RAY


@pytest.mark.parametrize(
    "path", sorted(p for _, p in modules() if p.name in ("config.py", "errors.py", "components.py"))
)
def test_configs_are_light(path):
    assert not {m for m in imports(path) if m.split(".")[0] in HEAVY}


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_linked_into_the_package(room):
    link = REPOSITORY / "src" / "shoal" / room
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room


def test_the_rules_can_fail(tmp_path):
    module = tmp_path / "wrong.py"
    module.write_text(
        "def f():\n    from shoal.cli.main import main\n    import ray.train\n    return main\n"
    )
    assert imports(module) == {"shoal.cli.main.main", "ray.train"}
    assert room_of("shoal.cli.main.main") not in ALLOWED["cluster"]
    assert room_of("shoal.verbs") == TOP
    assert room_of("shoal.training.config") == "training"
    assert room_of("numpy") is None
