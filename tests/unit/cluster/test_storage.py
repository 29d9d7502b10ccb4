import errno
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import FullError, StorageError
from shoal.cluster.filesystems import _fix, explained, locate
from shoal.cluster.storage import Storage, copy, redact

TABLE = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})


@pytest.fixture(params=["path", "file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "memory":
        yield Storage.open("memory://bucket/folder")
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    else:
        yield Storage.open(f"file://{tmp_path}" if request.param == "file" else str(tmp_path))


def test_what_is_written_is_read_back(storage: Storage) -> None:
    storage.write_bytes("a.bin", b"\x00\x01")
    storage.write_text("deep/er/ä.txt", "zwölf\n")
    storage.write_json("b.json", {"x": [1, None, "é"]})
    storage.write_table("t.parquet", TABLE)
    assert storage.read_bytes("a.bin") == b"\x00\x01"
    assert storage.read_bytes("deep/er/ä.txt").decode() == "zwölf\n"
    assert storage.read_json("b.json") == {"x": [1, None, "é"]}
    assert storage.read_table("t.parquet").equals(TABLE)
    assert storage.list() == ["a.bin", "b.json", "deep", "t.parquet"]
    assert storage.child("deep").child("er").list() == ["ä.txt"]
    with storage.open_input("t.parquet") as source:
        assert pq.ParquetFile(source).metadata.num_rows == 3


def test_a_missing_folder_is_empty_and_does_not_exist(storage: Storage) -> None:
    assert storage.list("none") == []
    assert not storage.exists("none")
    storage.write_text("some/x", "")
    assert storage.exists("some")
    assert storage.exists("some/x")


def test_delete_takes_files_and_folders_and_what_is_not_there(storage: Storage) -> None:
    storage.write_text("f", "1")
    storage.write_text("d/e/f", "1")
    for name in ("f", "d", "none"):
        storage.delete(name)
    assert storage.list() == []


def test_a_file_appears_whole_when_its_block_ends_and_replaces_the_old_one(storage: Storage) -> None:
    storage.write_text("f", "old")
    with storage.write_stream("f") as sink:
        sink.write(b"n" * 1_000_000)
        assert storage.read_bytes("f") == b"old"
        assert storage.list() == ["f"]
    assert storage.read_bytes("f") == b"n" * 1_000_000


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, pa.ArrowInvalid])
def test_a_file_never_appears_when_its_block_fails(storage: Storage, error: type[BaseException]) -> None:
    def interrupted(name: str) -> None:
        with storage.write_stream(name) as sink:
            sink.write(b"half")
            raise error("in the block")

    storage.write_text("kept", "old")
    for name in ("kept", "new"):
        with pytest.raises(error, match="in the block"):
            interrupted(name)
    assert storage.list() == ["kept"]
    assert storage.read_bytes("kept") == b"old"
    if storage.is_local:
        assert [p.name for p in storage.local().iterdir()] == ["kept"], "no temporary file is left"


def test_a_suffix_does_not_compress(storage: Storage) -> None:
    storage.write_bytes("x.gz", b"plain")
    assert storage.read_bytes("x.gz") == b"plain"


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("x y", "./x y/", "~/x y", f"file://{tmp_path}/x%20y"):
        found = Storage.open(uri)
        assert (found.uri, found.local("f")) == (str(tmp_path / "x y"), tmp_path / "x y" / "f")
    with pytest.raises(StorageError, match="not on a local disk"):
        Storage.open("memory://a").local()


def test_it_travels_to_other_processes(storage: Storage) -> None:
    storage.write_text("f", "1")
    again = pickle.loads(pickle.dumps(storage))
    assert again == storage
    assert again.read_bytes("f") == b"1"


def test_copy_from_one_place_to_another(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("f", b"1" * 20_000_000)
    copy(storage, "f", Storage.open(str(tmp_path / "there")), "g")
    assert (tmp_path / "there" / "g").read_bytes() == b"1" * 20_000_000


FULL = """
import resource, sys
from shoal.cluster.errors import StorageError
from shoal.cluster.storage import Storage
storage = Storage.open(sys.argv[1])
storage.write_bytes("f", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    storage.write_bytes("f", b"x" * 1_000_000)
except StorageError as error:
    print(error, error.exit_code)
"""


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    # A file size limit strikes in the middle of a write as a full disk does.
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == (
        f"cannot write {tmp_path}/f: the limit of a file's size is reached (it takes 1.0 MiB); free some space, or choose "
        "another place 1\n"
    )
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]


def test_no_space_has_the_same_message() -> None:
    sink = fs.LocalFileSystem().open_append_stream("/dev/full")
    with sink, pytest.raises(OSError, match="No space left") as raised:
        sink.write(b"x" * 100_000)
    assert raised.value.errno == errno.ENOSPC
    assert "free some space" in _fix(raised.value, "/x")


@pytest.mark.parametrize(
    ("where", "size", "said"),
    [
        ("/x/f", 2**20, "no space is left there (it takes 1.0 MiB, 0.5 GiB are free)"),
        ("/x/f", None, "no space is left there (0.5 GiB are free)"),
        ("s3://b/f", 2000, "no space is left there (it takes 2.0 KiB)"),
    ],
)
def test_a_full_disk_is_told_in_our_words(
    monkeypatch: pytest.MonkeyPatch, where: str, size: int | None, said: str
) -> None:
    monkeypatch.setattr("shoal.cluster.filesystems.free_disk", lambda _: 2**29)
    with pytest.raises(FullError) as raised, explained("write", where, size=size):
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    assert str(raised.value) == f"cannot write {where}: {said}; free some space, or choose another place"


def test_a_full_disk_of_what_waits_for_its_upload_is_named() -> None:
    storage = Storage.open("memory://bucket/folder")
    with (
        pytest.raises(FullError, match=f"cannot write {tempfile.gettempdir()}: no space is left there"),
        storage.write_stream("f"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not storage.exists("f")


@pytest.mark.parametrize("folder", ["file/inside", "/proc/none/x"])
def test_a_place_that_cannot_be_written(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("I am no folder")
    place = str(tmp_path / folder)
    with pytest.raises(StorageError, match=f"cannot write {place}/f: .*; ") as raised:
        Storage.open(place).write_text("f", "x")
    assert "\n" not in str(raised.value)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.parquet").write_text("PAR?")
    with pytest.raises(StorageError, match=r"cannot read .*/none\.json: .*nothing is there"):
        storage.read_json("none.json")
    with pytest.raises(StorageError, match=r"broken\.json is not JSON"):
        storage.read_json("broken.json")
    with pytest.raises(StorageError, match=r"broken\.parquet is no whole Parquet file"):
        storage.read_table("broken.parquet")
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json("nan.json", {"x": float("nan")})
    assert not storage.exists("nan.json")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "an empty path"),
        ("nosuch://bucket/x", "Protocol not known: nosuch"),
        ("s3://KEY:hu5h/ret@bucket/x", r"s3://\*\*\*@bucket/x: its secret holds a slash"),
        ("s3://", "s3:// names no bucket; write it as s3://bucket/folder"),
    ],
)
def test_a_uri_that_leads_nowhere(uri: str, says: str) -> None:
    with pytest.raises(StorageError, match=says) as raised:
        Storage.open(uri)
    assert "hu5h" not in str(raised.value)
    assert raised.value.__cause__ is None, "the cause holds the secret"


def test_s3_options_reach_the_filesystem(tmp_path: Path) -> None:
    config = StorageConfig(endpoint="http://localhost:9000", region="eu-north-1")
    uri, filesystem, path = locate("s3://KEY:s%2Fecret@bucket/a%20b/?allow_bucket_creation=true", config)
    assert isinstance(filesystem, fs.S3FileSystem)
    assert (uri, path, filesystem.region) == ("s3://***@bucket/a%20b", "bucket/a b", "eu-north-1")
    rebuilt, (options,) = filesystem.__reduce__()[0], filesystem.__reduce__()[1]
    assert rebuilt is not None
    assert options["endpoint_override"] == "localhost:9000"
    assert options["scheme"] == "http"
    assert options["access_key"] == "KEY"
    assert options["secret_key"] == "s/ecret"
    with pytest.raises(StorageError, match="nosuchoption"):
        locate("s3://bucket/x?nosuchoption=1", config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://AK:SE@bucket/key", "s3://***@bucket/key"),
        ("cannot read 's3://AK:S/E+x@bucket/key': no", "cannot read 's3://***@bucket/key': no"),
        ("hdfs://alice@host:8020/a", "hdfs://***@host:8020/a"),
        ("hdfs://host:8020/mail@example", "hdfs://host:8020/mail@example"),
        (
            "https://b/x?X-Amz-Signature=abc&part=1&X-Amz-Credential=d",
            "https://b/x?X-Amz-Signature=***&part=1&X-Amz-Credential=***",
        ),
        ("abfs://c/x?sig=a%2Bb&sv=1", "abfs://c/x?sig=***&sv=1"),
        ("s3://b/x?access_key=A&secret_key=B", "s3://b/x?access_key=***&secret_key=***"),
        ("key AKIAIOSFODNN7EXAMPLE is used", "key *** is used"),
        ("mail me@example.com, ratio=3, /data/a@b", "mail me@example.com, ratio=3, /data/a@b"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


def test_secrets_of_the_environment_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    assert redact("signed with wJalrXUtnFEMI") == "signed with ***"
    assert "wJalrXUtnFEMI" in os.environ.values()


@pytest.mark.parametrize("config", [StorageConfig(), StorageConfig(endpoint="http://127.0.0.1:1")])
def test_a_secret_with_a_slash_is_refused_and_not_repeated(config: StorageConfig) -> None:
    with pytest.raises(StorageError, match="secret holds a slash.*%2F") as refusal:
        Storage.open("s3://USER9:pw/slash+secretvalue@shoal/in/d.parquet", config)
    assert "slash+secret" not in str(refusal.value)
    assert "USER9" not in str(refusal.value)
