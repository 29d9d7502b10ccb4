"""Checkpoints that are written while training goes on."""

import json
import threading
from pathlib import Path

import pytest
import torch

from shoal.cluster.errors import StorageError
from shoal.cluster.storage import Storage
from shoal.training.checkpoints import keeper as module
from shoal.training.checkpoints.files import Part, latest, write_part, written
from shoal.training.checkpoints.keeper import RunKeeper, prune
from shoal.training.strategies.base import Fragment


def part(position: int, weights: torch.Tensor, history: list[int]) -> Part:
    return Part(position, 0, 1, {"model/w": Fragment(weights)}, {"history": history})


def test_what_is_written_is_the_step_it_was_given_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def held(given: Part, folder: Storage) -> None:
        assert go_on.wait(10)
        write_part(given, folder)

    monkeypatch.setattr(module, "write_part", held)
    weights, history = torch.arange(4.0), [1]
    keeper = RunKeeper(Storage.open(str(tmp_path)), 1.0, 2)
    keeper.save(part(1, weights, history), "step-000000000001-a", last=False)
    weights += 100  # training goes on
    history.append(2)
    assert written(keeper.run) == []
    go_on.set()
    keeper.finish()
    found, problems = latest(keeper.run)
    assert found is not None
    assert problems == []
    assert torch.equal(found.read("model/w", 0, None), torch.arange(4.0))
    assert found.facts() == {"history": [1]}


def test_old_ones_go_when_the_new_one_is_stored(tmp_path: Path) -> None:
    keeper = RunKeeper(Storage.open(str(tmp_path)), 1.0, 2)
    for position in (1, 2, 3):
        keeper.save(part(position, torch.ones(2), []), f"step-{position:012d}-a", last=position == 3)
    assert [position for position, _ in written(keeper.run)] == [3, 2]


@pytest.mark.parametrize("last", [True, False])
def test_an_error_in_the_background_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    def full(given: Part, folder: Storage) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(module, "write_part", full)
    keeper = RunKeeper(Storage.open(str(tmp_path)), 1.0, 2)
    if last:
        with pytest.raises(StorageError, match="no space left"):
            keeper.save(part(1, torch.ones(2), []), "step-000000000001-a", last=True)
    else:
        keeper.save(part(1, torch.ones(2), []), "step-000000000001-a", last=False)
        with pytest.raises(StorageError, match="no space left"):
            keeper.finish()
    keeper.finish()


def test_damaged_checkpoints_that_go_are_named(tmp_path: Path) -> None:
    keeper = RunKeeper(Storage.open(str(tmp_path)), 1.0, 3)
    for position in (1, 2, 3):
        keeper.save(part(position, torch.ones(2), []), f"step-{position:012d}-a", last=True)
    (newest,) = tmp_path.glob("checkpoints/*/step-000000000003-a/*.safetensors")
    newest.write_bytes(b"cut")
    (problem,) = prune(keeper.run)
    assert "step-000000000003-a" in problem
    assert "is damaged" in problem
    assert [position for position, _ in written(keeper.run)] == [2]


def test_checkpoints_of_another_version_stop_the_run_and_stay(tmp_path: Path) -> None:
    run = Storage.open(str(tmp_path))
    write_part(part(1, torch.ones(2), []), run.child("checkpoints/attempt-1/step-000000000001"))
    (file,) = tmp_path.rglob("rank-*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    with pytest.raises(StorageError, match="another version of Shoal"):
        prune(run)
    assert file.exists()


@pytest.mark.parametrize(("place", "reached"), [("memory://keeper/noted", (3, 1)), ("{tmp}", (5, 1))])
def test_an_object_store_is_seldom_told_how_far_a_fit_came(
    tmp_path: Path, place: str, reached: tuple[int, int]
) -> None:
    run = Storage.open(place.format(tmp=tmp_path))
    first = RunKeeper(run, 1e9, 2)
    assert first.reached() == (0, 0)
    first.note(3, 1)
    first.note(5, 1)  # a moment later: a put to an object store takes its time
    assert RunKeeper(run, 1e9, 2).reached() == reached
    run.delete()
