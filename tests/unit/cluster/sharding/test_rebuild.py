"""What an earlier run left is used: a lost shard is rebuilt alone, an interrupted run is gone on with."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.cluster.errors import StorageError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.config import DataConfig
from shoal.cluster.sharding.manifest import MANIFEST
from shoal.cluster.sharding.service import BUDGET, shard
from shoal.cluster.storage import Storage

SPILLED = 20_000  # bytes: several blocks
RESAMPLED = {"imbalance": {"random_over_sampler": {}}}


class Heard(Silent):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


class Rig:
    """A table as a file, a folder for its shards, and what a run does to that folder."""

    def __init__(self, table: pa.Table, folder: Path, **data: Any) -> None:
        pq.write_table(table, folder / "in.parquet", row_group_size=61)
        self.data = DataConfig.model_validate({"path": str(folder / "in.parquet"), "target": "label"} | data)
        self.out, self.heard = folder / "out", Heard()

    def run(self, budget: int = BUDGET, verify: bool = True) -> dict[str, bytes]:
        self.heard = Heard()
        storage = Storage.open(str(self.out))
        self.manifest = shard(self.data, 0, storage, budget=budget, verify=verify, reporter=self.heard)
        return self.bytes()

    def bytes(self) -> dict[str, bytes]:
        found = (path for path in self.out.rglob("*") if path.is_file())
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in found}

    def stamps(self) -> dict[str, int]:
        found = (path for path in self.out.rglob("*") if path.is_file())
        return {path.relative_to(self.out).as_posix(): path.stat().st_mtime_ns for path in found}


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if how != "lost":
        path.write_bytes(data[:-9] if how == "cut" else data[:300] + bytes([data[300] ^ 1]) + data[301:])


@pytest.mark.parametrize("budget", [BUDGET, SPILLED], ids=["in memory", "spilled"])
@pytest.mark.parametrize("how", ["lost", "cut", "changed"])
@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({}, "train-00003"),
        ({"id": "order", "target": "amount"}, "test-00000"),
        (RESAMPLED, "train-00002"),
        (RESAMPLED, "validation-00001"),
    ],
    ids=["train", "regression", "resampled train", "beside resampled rows"],
)
def test_a_broken_shard_is_rebuilt_alone(
    table: pa.Table, tmp_path: Path, budget: int, how: str, data: dict[str, Any], name: str
) -> None:
    rig = Rig(table, tmp_path, **data)
    expected, before = rig.run(), rig.stamps()
    damage(rig.out / f"shards/{name}.arrow", how)
    assert rig.run(budget) == expected
    changed = {path for path, stamp in rig.stamps().items() if stamp != before[path]}
    assert changed == {f"shards/{name}.arrow"}
    assert f"1 file to rebuild, missing or damaged: shards/{name}.arrow" in rig.heard.notices


def test_damage_is_looked_for_where_asked(table: pa.Table, tmp_path: Path) -> None:
    rig = Rig(table, tmp_path)
    expected = rig.run()
    damage(rig.out / "shards/train-00001.arrow", "changed")
    assert rig.run(verify=False) != expected
    # One that is missing is seen without; then the rest is looked at too.
    damage(rig.out / "shards/test-00001.arrow", "lost")
    assert rig.run(verify=False) == expected


def test_a_shard_that_comes_out_otherwise_is_refused(table: pa.Table, tmp_path: Path) -> None:
    rig = Rig(table, tmp_path)
    rig.run()
    manifest = Storage.open(str(rig.out)).read_json(MANIFEST)
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    Storage.open(str(rig.out)).write_json(MANIFEST, manifest)
    with pytest.raises(StorageError, match="not as manifest.json recorded them.*Delete that folder"):
        rig.run()


class Killed(BaseException):
    """The end of a process, as far as the work sees it."""


@pytest.mark.parametrize("budget", [BUDGET, SPILLED], ids=["in memory", "spilled"])
@pytest.mark.parametrize(
    "data", [{}, {"target": "amount"}, RESAMPLED], ids=["binary", "regression", "resampled"]
)
def test_an_interrupted_run_is_gone_on_with(
    table: pa.Table, tmp_path: Path, budget: int, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = pa.array(np.where(np.array(table["label"].to_pylist()) == "yes", "Y", "N"))
    twice = pa.compute.multiply(table["amount"], 2.0)
    table = table.append_column("told", told).append_column("twice", twice)
    table = table.append_column("same", pa.array(["x"] * len(table)))
    rig = Rig(table, tmp_path, **data)
    expected = rig.run()
    notices = rig.heard.notices
    assert any("alone tells the target" in notice for notice in notices)  # of the shards that are kept, too
    shutil.rmtree(rig.out)
    write, left = Storage.write_bytes, 20

    def until_killed(storage: Storage, name: str, content: bytes | memoryview) -> None:
        nonlocal left
        if name.endswith(".arrow"):
            left -= 1
            if left < 0:
                raise Killed
        write(storage, name, content)

    monkeypatch.setattr(Storage, "write_bytes", until_killed)
    with pytest.raises(Killed):
        rig.run(SPILLED)
    monkeypatch.undo()
    before = rig.stamps()
    kept = {path for path in before if path.endswith(".arrow")}
    assert len(kept) == 20
    damage(rig.out / max(kept), "changed")
    assert not (rig.out / MANIFEST).exists()
    assert rig.run(budget) == expected
    (said,) = [notice for notice in rig.heard.notices if notice not in notices]
    after = rig.stamps()
    same = sum(after[path] == before[path] for path in kept)
    assert said == f"{same} shards of an interrupted run are kept"
    assert 5 < same < 20


def test_work_of_other_data_goes_away(
    table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(table, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shoal.cluster.sharding.units.write_shard", None)
        with pytest.raises(TypeError):
            rig.run()
    assert any(name.startswith("sharding-") for name in rig.bytes())
    (rig.out / "shards").mkdir()
    for name in ("train-99999.arrow", ".tmp-0123abcd-train-00000.arrow"):
        (rig.out / "shards" / name).write_bytes(b"of more shards, and of a killed process")
    rig.data = rig.data.model_copy(update={"drop": ("city",)})
    names = set(rig.run())
    assert names == {MANIFEST} | {f.path for part in rig.manifest.splits.values() for f in part.shards}
