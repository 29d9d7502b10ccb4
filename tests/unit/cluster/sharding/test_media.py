"""Texts and images in shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.media import WORDS, encoded, image_table, pictures, save_tokenizer, text_table
from support.sharded import Files, Gather, Run, notices, replace

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding import texts
from shoal.cluster.sharding.config import DataConfig, ImageConfig, TextConfig
from shoal.cluster.sharding.dataset import ShardedDataset
from shoal.cluster.sharding.images import pixels, pixels_of, rooted
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.plan import count_shards
from shoal.cluster.sharding.prepare import prepare
from shoal.cluster.sharding.service import sharding_key

PHOTO = {"target": "y", "id": "key", "types": {"photo": {"image": {"size": 8}}}}


def review(folder: Path, max_length: int = 6) -> dict[str, Any]:
    return {
        "target": "y",
        "id": "key",
        "types": {"review": {"text": {"tokenizer": str(folder), "max_length": max_length}}},
    }


def column_of(**image: Any) -> Column:
    return Column(name="photo", type="image", arrow_type="binary", pixels=pixels_of(ImageConfig(**image)))


def pixels_in(found: dict[str, Any], block: int, *shape: int) -> np.ndarray:
    """Return uint8 ``[n, …]`` of the last numbers of the codes."""
    own = np.ascontiguousarray(found["categorical"][:, -block:]).view(np.uint8)
    return own[:, : np.prod(shape)].reshape(-1, *shape)


def by_id(found: dict[str, Any], values: np.ndarray) -> np.ndarray:
    return values[np.argsort(found["row_id"])]


def test_shards_hold_the_pixels_that_were_encoded_beside_numbers_and_codes(run: Run, gather: Gather) -> None:
    dataset = run(image_table(90), **PHOTO)
    found = [gather(dataset, part) for part in ("train", "validation", "test")]
    whole = {
        "row_id": [x for f in found for x in f["row_id"]],
        "categorical": np.concatenate([f["categorical"] for f in found]),
    }
    np.testing.assert_array_equal(by_id(whole, pixels_in(whole, 48, 8, 8, 3)), pictures(90)[0])
    assert [c.name for c in dataset.schema.columns] == ["photo", "price", "kind"]
    assert found[0]["numeric"].shape[1] == 1
    assert set(found[0]["categorical"][:, 0]) == {2, 3}  # two categories
    assert found[0]["categorical"].shape[1] == dataset.schema.codes_width == 1 + 48


@pytest.mark.parametrize("absolute", [False, True])
def test_paths_give_what_bytes_do(run: Run, gather: Gather, tmp_path: Path, absolute: bool) -> None:
    table, folder = image_table(60), tmp_path / "rows" / "photos"
    folder.mkdir(parents=True)
    names = []
    for i, data in enumerate(table["photo"].to_pylist()):
        (folder / f"{i}.png").write_bytes(data)
        names.append(str(folder / f"{i}.png") if absolute else f"photos/{i}.png")
    pq.write_table(replace(table, "photo", pa.array(names)), tmp_path / "rows" / "rows.parquet")
    data = PHOTO | {"split": {"test": 0, "validation": 0}}
    of_paths, of_bytes = run([str(tmp_path / "rows" / "rows.parquet")], **data), run(table, **data)
    one, other = gather(of_paths, "train"), gather(of_bytes, "train")
    np.testing.assert_array_equal(by_id(one, one["categorical"]), by_id(other, other["categorical"]))
    moved = rooted(of_paths.schema, ["/elsewhere/new.parquet"], StorageConfig())
    raw = replace(table, "photo", pa.array(names))
    if absolute:
        np.testing.assert_array_equal(
            prepare(raw, moved).categorical, prepare(table, of_bytes.schema).categorical
        )
    else:
        with pytest.raises(
            DataError, match=r"a value photos/0.png that is no image \(there is no such file\)"
        ):
            prepare(raw, moved)


def test_paths_begin_in_the_folder_that_all_files_share() -> None:
    schema = _schema_of(column_of(size=8))
    for places, folder in (
        (["/a/b/c.parquet"], "/a/b"),
        (["/a/b/x=1/c.parquet", "/a/b/x=2/c.parquet"], "/a/b"),
        (["s3://bucket/a/c.parquet", "s3://bucket/ab/c.parquet"], "s3://bucket"),
    ):
        found = rooted(schema, places, StorageConfig()).columns[0].pixels
        assert found is not None
        assert found.folder == folder


def _schema_of(column: Column) -> Schema:
    return Schema(columns=(column,), target=Target(columns=("y",), task="regression"))


def test_raw_pixels_need_a_shape_and_keep_their_values() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 3, 2), np.uint8)
    column = column_of(shape=[3, 2])
    found = pixels(pa.array([v.tobytes() for v in values]), column)
    assert found.shape == (5, 2)  # 6 bytes in 8
    raw = found.view(np.uint8)
    np.testing.assert_array_equal(raw[:, :6].reshape(5, 3, 2), values)
    assert not raw[:, 6:].any()
    with pytest.raises(DataError, match=r"7 bytes, and shape \[3, 2\] needs 6"):
        pixels(pa.array([bytes(7)]), column)


def test_images_are_cut_around_the_middle_and_scaled() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    found = pixels(pa.array([encoded(wide)]), column_of(size=8)).view(np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(found, wide[:, 4:12])
    halved = pixels(pa.array([encoded(wide)]), column_of(size=[4, 8])).view(np.uint8).reshape(4, 8, 3)
    expected = np.asarray(Image.fromarray(wide).resize((8, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(halved, expected)
    grey = pixels(pa.array([encoded(wide[:, 4:12])]), column_of(size=8, channels=1)).view(np.uint8)
    luma = wide[:, 4:12] @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(grey.reshape(8, 8) - luma).max() <= 1


def test_a_missing_image_is_the_mean_colour_and_a_missing_text_has_special_tokens_only(
    run: Run, gather: Gather, tmp_path: Path
) -> None:
    table = image_table(60)
    photos = table["photo"].to_pylist()
    photos[3] = None
    data = PHOTO | {
        "types": {"photo": {"image": {"size": 8, "mean": [0.2, 0.4, 0.6]}}},
        "split": {"test": 0, "validation": 0},
    }
    dataset = run(replace(table, "photo", pa.array(photos)), **data)
    found = gather(dataset, "train")
    own = by_id(found, pixels_in(found, 48, 8, 8, 3))[3]
    assert set(map(tuple, own.reshape(-1, 3))) == {(51, 102, 153)}
    assert "missing values (null or NaN) of 60 rows: 'photo' in 1" in notices(dataset)
    assert "images of the mean colour" in notices(dataset)
    assert "texts and images take 11.2 KiB in the shards" in notices(dataset)
    words = text_table(60)
    reviews = words["review"].to_pylist()
    reviews[5] = None
    dataset = run(
        replace(words, "review", pa.array(reviews)),
        **review(save_tokenizer(tmp_path / "t")),
        split={"test": 0, "validation": 0},
    )
    found = gather(dataset, "train")
    assert by_id(found, found["categorical"])[5].tolist() == [2, 3, -1, -1, -1, -1]


def test_what_is_no_image_is_refused_without_a_private_value() -> None:
    column = column_of(size=8)
    with pytest.raises(
        DataError, match=r"column 'photo' has a value that is no image \(it is of no format that is known\)"
    ):
        pixels(pa.array([b"GIF what"]), column)
    cut = encoded(pictures(1, side=64)[0][0], "JPEG")[:600]
    with pytest.raises(DataError, match="that is no image"):
        pixels(pa.array([cut]), column)
    with pytest.raises(DataError, match="is no image: mend it") as caught:
        pixels(pa.array(["secret/name.png"]), column, private=True)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="column 'photo' is double, expected images"):
        pixels(pa.array([1.0]), column)


def test_tokens_are_those_of_the_tokenizer_cut_and_filled(run: Run, gather: Gather, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder, table = save_tokenizer(tmp_path / "t"), text_table(120)
    long = ["the film was a plot a plot great unheard", *table["review"].to_pylist()[1:]]
    dataset = run(
        replace(table, "review", pa.array(long)), **review(folder, 7), split={"test": 0, "validation": 0}
    )
    found = gather(dataset, "train")
    tokens = by_id(found, found["categorical"])
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for row, text in zip(tokens, long, strict=True):
        expected = own.encode(text).ids
        if len(expected) > 7:
            expected = [*expected[:6], 3]  # the last one stays [SEP]
        assert row.tolist() == expected + [-1] * (7 - len(expected))
    assert (
        "training texts of 7 tokens (median), at most 11; 1 of 120 (0.8%) are cut at max_length: 7"
        in notices(dataset)
    )
    held = dataset.schema.columns[0].tokens
    assert held is not None
    assert (held.vocabulary, held.padding) == (len(WORDS) + 4, 0)


def test_a_tokenizer_without_its_json_is_read_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s"])
    )
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}'
    )
    (folder / "config.json").write_text('{"model_type": "bert"}')
    column = Column(
        name="review",
        type="text",
        arrow_type="text",
        tokens=texts.tokens_of("review", TextConfig(tokenizer=str(folder), max_length=8)),
    )
    expected = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)("Good films")[
        "input_ids"
    ]
    assert len(expected) == 5
    assert texts.tokens(pa.array(["Good films"]), column).tolist() == [[*expected, -1, -1, -1]]


def test_shards_do_not_depend_on_the_budget(run: Run, files: Files, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t")
    for table, data in ((image_table(300), PHOTO), (text_table(300), review(folder))):
        assert files(run(table, budget=20_000, **data)) == files(run(table, **data))


def test_another_tokenizer_is_another_dataset(tmp_path: Path) -> None:
    pq.write_table(text_table(60), tmp_path / "rows.parquet")
    keys = []
    for words in (WORDS, WORDS, (*WORDS, "more")):
        data = DataConfig(
            path=str(tmp_path / "rows.parquet"), **review(save_tokenizer(tmp_path / "t", words))
        )
        keys.append(sharding_key(data, 0))
    assert keys[0] == keys[1] != keys[2]


def test_shards_of_large_rows_have_fewer() -> None:
    assert count_shards(1 << 20, "auto") == 256
    assert count_shards(1 << 20, "auto", 784) == 256
    assert count_shards(1 << 16, "auto", 3 * 224**2) == 128  # 446 rows of 64 MiB


def test_types_that_are_not_said_are_refused_with_what_to_say(run: Run) -> None:
    with pytest.raises(DataError, match=r"holds raw bytes.*data.types: \{photo: \{image: \{size: 224\}\}\}"):
        run(image_table(60), target="y", id="key")
    words = text_table(60).set_column(
        0, "review", pa.array([f"it was the film number {i} of mine" for i in range(60)])
    )
    with pytest.raises(
        DataError, match=r"holds text.*data.types: \{review: \{text: \{tokenizer: ./folder\}\}\}"
    ):
        run(words, target="y", id="key")
    with pytest.raises(DataError, match="column 'price' is double and cannot be image"):
        run(image_table(60), target="y", drop=["photo"], types={"price": {"image": {"size": 8}}})


def test_resampling_that_looks_at_numbers_is_refused_and_copies_are_not(run: Run, gather: Gather) -> None:
    table = image_table(120)
    label = pa.array(np.where(np.arange(120) % 5 == 0, "yes", "no"))
    table = replace(table, "y", label)
    for method in ("smote", "tomek_links", "near_miss"):
        with pytest.raises(
            ConfigError, match=f"{method} looks at the numbers of rows, and column 'photo' is an image"
        ):
            run(table, imbalance=method, **PHOTO)
    for method in ("random_over_sampler", "random_under_sampler"):
        dataset = run(table, imbalance=method, **PHOTO)
        own = gather(dataset, "train")
        assert len(set(dataset.class_rows("train"))) == 1
        originals = {one.tobytes() for one in pictures(120)[0]}
        assert {one.tobytes() for one in pixels_in(own, 48, 8, 8, 3)} <= originals


def test_a_missing_tokenizer_or_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="data.types.x.text.tokenizer: ") as caught:
            texts.tokens_of("x", TextConfig(tokenizer=str(place)))
        assert str(place) in str(caught.value)
    empty = tmp_path / "bert"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="no vocabulary: every word would be unknown"):
        texts.tokens_of("x", TextConfig(tokenizer=str(empty)))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no tokenizer that can be read"):
        texts.tokens_of("x", TextConfig(tokenizer=str(tmp_path)))
    with pytest.raises(ConfigError, match="max_length: 2 leaves no token"):
        texts.tokens_of("x", TextConfig(tokenizer=str(save_tokenizer(tmp_path / "t")), max_length=2))
    monkeypatch.setattr(texts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs the package tokenizers: pip install "shoal\[transfer\]"'):
        texts.tokens_of("x", TextConfig(tokenizer=str(tmp_path / "t")))


def test_open_datasets_know_what_their_columns_give(run: Run) -> None:
    dataset: ShardedDataset = run(image_table(60), **PHOTO)
    assert [c.gives for c in dataset.schema.columns] == ["8 x 8 x 3 pixels", "1 number", "4 codes"]
