"""Checkpoints on disk: fragments of several workers, read back for any other number of them."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from shoal.cluster.errors import StorageError
from shoal.cluster.storage import Storage
from shoal.training.checkpoints.files import Checkpoint, Part, latest, write_part
from shoal.training.checkpoints.keeper import prune
from shoal.training.strategies.base import Fragment


def write(folder: Storage, flat: torch.Tensor, edges: list[int]) -> None:
    """Write a flat tensor as one worker a piece, and a whole one beside it."""
    bounds = [0, *edges, len(flat)]
    for rank, (start, stop) in enumerate(pairwise(bounds)):
        tensors = {
            "state/flat": Fragment(flat[start:stop], start),
            "state/whole": Fragment(torch.arange(6.0).view(2, 3)),
        }
        write_part(Part(7, rank, len(bounds) - 1, tensors, {"rank": rank}), folder)


@settings(max_examples=40)
@given(
    size=st.integers(1, 40),
    old=st.lists(st.integers(0, 40), max_size=4),
    window=st.tuples(st.integers(0, 40), st.integers(0, 50)),
)
def test_any_slice_is_put_together_from_any_cut(
    tmp_path_factory: pytest.TempPathFactory, size: int, old: list[int], window: tuple[int, int]
) -> None:
    flat = torch.randn(size, dtype=torch.float64)
    folder = Storage.open(str(tmp_path_factory.mktemp("checkpoint")))
    write(folder, flat, sorted(min(edge, size) for edge in old))
    found = Checkpoint.open(folder).verify()
    start, stop = min(window), max(window)
    padded = torch.cat([flat, torch.zeros(60, dtype=torch.float64)])
    assert torch.equal(found.read("state/flat", start, stop), padded[start:stop])
    assert torch.equal(found.read("state/flat", 0, None), flat)
    assert torch.equal(found.read("state/whole", 0, None), torch.arange(6.0).view(2, 3))
    assert torch.equal(found.read("state/whole", 1, 4), torch.arange(1.0, 4.0))
    assert found.names("state/") == ["flat", "whole"]
    assert (found.position, found.world_size) == (7, len(old) + 1)
    assert found.facts(len(old)) == {"rank": len(old)}
    assert found.facts(len(old) + 1) is None


def test_whole_tensors_are_written_once(tmp_path: Path) -> None:
    write(Storage.open(str(tmp_path)), torch.zeros(4), [2])
    sizes = [(tmp_path / f"rank-0000{rank}.safetensors").stat().st_size for rank in (0, 1)]
    assert sizes[1] < sizes[0]


def test_parts_of_different_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = Storage.open(str(tmp_path))
    write(folder, torch.zeros(4), [2])
    write_part(Part(8, 1, 2, {}, {}), folder)
    with pytest.raises(StorageError, match="parts of different checkpoints"):
        Checkpoint.open(folder)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        **{
            str(d): torch.randn(3, 5).to(d)
            for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        },
        **{
            str(d): torch.arange(7).to(d)
            for d in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        },
        "bool": torch.tensor([True, False, True]),
        "complex": torch.randn(4, dtype=torch.complex64),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "not contiguous": torch.arange(12.0).view(3, 4).T,
        "with a gradient": torch.ones(2, requires_grad=True),
        '名 "quoted"': torch.ones(1),
    }
    folder = Storage.open(str(tmp_path))
    write_part(Part(1, 0, 1, {n: Fragment(t) for n, t in tensors.items()}, {}), folder)
    found = load_file(tmp_path / "rank-00000.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name


@pytest.mark.parametrize("name", ["rank-00001.json", "rank-00001.safetensors"])
@pytest.mark.parametrize("how", ["deleted", "truncated", "edited"])
def test_what_is_not_what_was_written_is_left_out(tmp_path: Path, name: str, how: str) -> None:
    run, flat = Storage.open(str(tmp_path)), torch.arange(4.0)
    write(run.child("checkpoints/a/step-000000000007-aa"), flat, [2])
    write(run.child("checkpoints/a/step-000000000009-bb"), flat, [2])
    file = tmp_path / "checkpoints/a/step-000000000009-bb" / name
    content = file.read_bytes()
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        changed = content.replace(b"7", b"6", 1) if name.endswith("json") else content[:-1] + b"\x01"
        assert changed != content
        file.write_bytes(changed)
    found, problems = latest(run)
    assert found is not None
    assert found.folder.path.endswith("step-000000000007-aa")
    assert len(problems) == 1
    assert name in problems[0]


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Storage.open(str(tmp_path))
    write(run.child("checkpoints/a/step-000000000009-bb"), torch.zeros(4), [2])

    def unreachable(self: Storage, name: str) -> bytes:
        raise StorageError(f"cannot read {name}: the network is down")

    monkeypatch.setattr(Storage, "read_bytes", unreachable)
    with pytest.raises(StorageError, match="the network is down"):
        prune(run)
    assert list(tmp_path.glob("checkpoints/a/step-*"))
