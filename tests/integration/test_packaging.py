"""What is installed: one package, with every room and data file inside."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("cluster", "training", "tuning", "transfer", "evaluation", "k8s")
NEEDED = (*ROOMS, "src", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the sdist, and the wheel from the sdist, off the repository."""
    source, out = tmp_path_factory.mktemp("a source"), tmp_path_factory.mktemp("built")
    for name in NEEDED:
        origin = REPOSITORY / name
        if origin.is_dir():
            shutil.copytree(
                origin,
                source / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
            )
        else:
            shutil.copy(origin, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


def expected():
    """Every file of the package, as it is named inside `shoal`."""
    files = {}
    for room in ROOMS:
        for path in (REPOSITORY / room).rglob("*"):
            files[f"{room}/{path.relative_to(REPOSITORY / room).as_posix()}"] = path
    own = REPOSITORY / "src" / "shoal"
    for path in own.rglob("*"):
        if path.relative_to(own).parts[0] not in ROOMS:
            files[path.relative_to(own).as_posix()] = path
    return {name for name, path in files.items() if path.is_file() and "__pycache__" not in name}


def test_the_wheel_holds_every_file_under_one_name(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    inside = {name.removeprefix("shoal/") for name in names if name.startswith("shoal/")}
    assert inside == expected()
    assert "py.typed" in inside
    assert {name.split("/")[0] for name in names} == {"shoal", f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_real_files_where_the_repository_has_links(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {m.name.split("/", 1)[1]: m for m in archive.getmembers() if "/" in m.name}
    for name in expected():
        member = members[f"src/shoal/{name}"]
        assert member.isfile()
        assert not member.issym()


def test_the_unpacked_wheel_imports_and_no_room_is_a_global_name(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    code = (
        "import importlib.util, sys; sys.path.insert(0, sys.argv[1]);"
        "import shoal, shoal.training, shoal.cluster.sharding, shoal.cli.main;"
        "assert shoal.__file__.startswith(sys.argv[1]), shoal.__file__;"
        "assert shoal.training.__file__.startswith(sys.argv[1]);"
        f"bare = [room for room in {ROOMS} if importlib.util.find_spec(room)];"
        "code = shoal.cli.main.main(['schema', '--quiet']);"
        "print(bare, code, shoal.Experiment.__module__, shoal.TrainedModel.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "unpacked")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == ["[] 0 shoal.experiment TrainedModel"], done.stderr
