from pathlib import Path

import pytest

from shoal.cluster.errors import StorageError
from shoal.cluster.progress import EpochRecord, Log, Reporter, Several, Silent

RECORD = EpochRecord(2, 10, 20, 100, 0.123456, "roc_auc", 0.9, True, 1.25, 12345.6)


def everything(reporter: Reporter) -> None:
    reporter.stage("sharding")
    reporter.advance(1, 2, "files")
    reporter.advance(2, 2, "files")
    reporter.notice("read s3://KEY:SECRET@bucket/x\nin two lines")
    reporter.epoch(RECORD)
    reporter.done()


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    everything(Silent())
    assert capfd.readouterr() == ("", "")


def test_the_log_is_appended_stamped_and_redacted(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.txt"
    everything(Log(path))
    everything(Several([Silent(), Log(str(path))]))
    lines = path.read_text().splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("20")
    assert [line[20:] for line in lines[:6]] == [
        "sharding",
        "sharding: 2 files",
        "notice: read s3://***@bucket/x",
        "in two lines",
        "epoch 2/10  loss 0.1235  roc_auc 0.9000 (best)  12,346 rows/s  1.2 s",
        "done",
    ]


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file/log\.txt"):
        Log(tmp_path / "file" / "log.txt").notice("x")


def test_an_epoch_without_validation_rows() -> None:
    assert "roc_auc" not in str(EpochRecord(1, 1, 1, 1, 0.5, "roc_auc", None, False, 1.0, 1.0))
