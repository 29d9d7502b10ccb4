"""Texts as tokens, by a tokenizer that lies in a local folder and then travels with the columns.

The package tokenizers does the work, on a file that holds a whole tokenizer (``tokenizer.json``). Nothing is fetched.
"""

import base64
import importlib.util
import json
import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.errors import ConfigError, DataError
from shoal.cluster.sharding.arrays import described, is_text
from shoal.cluster.sharding.config import DataConfig, TextConfig
from shoal.cluster.sharding.manifest import Column, Tokens

NO_TOKEN = -1  # behind the last one
_FILE = "tokenizer.json"
_PADDINGS = ("[PAD]", "<pad>", "<PAD>", "<|endoftext|>")
_TEXTS = 4096  # tokenised at a time


def tokens_of(name: str, config: TextConfig) -> Tokens:
    """Read the tokenizer of a column.

    Raises
    ------
    ConfigError
        If a package or the tokenizer is missing or cannot be read; the message names the key.
    """
    key = f"data.types.{name}.text.tokenizer"
    _require("tokenizers", key)
    text, named = _read(config.tokenizer, key)
    file = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    try:
        tokenizer = _tokenizer(file, None)
    except Exception as error:  # tokenizers raises no narrower class
        raise ConfigError(
            f"{key}: {config.tokenizer} holds no tokenizer that can be read: {error}"
        ) from error
    special = tokenizer.num_special_tokens_to_add(False)
    if config.max_length <= special:
        raise ConfigError(
            f"data.types.{name}.text.max_length: {config.max_length} leaves no token of a text, because the tokenizer adds "
            f"{special} of its own; use a larger number"
        )
    known = [tokenizer.token_to_id(token) for token in (*named, *_PADDINGS)]
    padding = next((found for found in known if found is not None), 0)
    return Tokens(
        file=file,
        max_length=config.max_length,
        vocabulary=1 + max(tokenizer.get_vocab(True).values(), default=0),
        padding=padding,
    )


def tokenizers(data: DataConfig) -> dict[str, str]:
    """Return what the tokenizer of each text column holds: a part of what shards are known by."""
    return {
        name: tokens_of(name, config).file
        for name, config in sorted(data.types.items())
        if isinstance(config, TextConfig)
    }


def tokens(array: pa.Array, column: Column) -> npt.NDArray[np.int32]:
    """Return the first tokens of texts, int32 ``[n, max_length]``, `NO_TOKEN` behind the last one; a missing text is empty.

    Raises
    ------
    DataError
        If the values are no texts.
    """
    assert column.tokens is not None
    tokenizer = _tokenizer(column.tokens.file, column.tokens.max_length)
    out = np.full((len(array), column.tokens.max_length), NO_TOKEN, np.int32)
    for start in range(0, len(array), _TEXTS):
        for row, found in enumerate(
            tokenizer.encode_batch_fast(_texts(array.slice(start, _TEXTS), column)), start
        ):
            out[row, : len(found.ids)] = found.ids
    return out


def token_counts(array: pa.Array, column: Column) -> npt.NDArray[np.int64]:
    """Return how many tokens texts have before they are cut, int64 ``[n]``."""
    assert column.tokens is not None
    tokenizer = _tokenizer(column.tokens.file, None)
    counts = [
        len(found)
        for start in range(0, len(array), _TEXTS)
        for found in tokenizer.encode_batch_fast(_texts(array.slice(start, _TEXTS), column))
    ]
    return np.array(counts, np.int64)


def stay_offline() -> None:
    """Let no library of Hugging Face's fetch anything; to be called before one is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else it warns of each process started later


def _texts(array: pa.Array, column: Column) -> list[str]:
    if pa.types.is_null(array.type):
        return [""] * len(array)
    if not is_text(array.type):
        raise DataError(f"column {column.name!r} is {described(array.type)}, expected text; convert it")
    return [text or "" for text in array.to_pylist()]


@lru_cache(maxsize=16)
def _tokenizer(file: str, max_length: int | None) -> Any:
    _require("tokenizers", "a column of texts")
    stay_offline()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(zlib.decompress(base64.b64decode(file)).decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def _read(place: str, key: str) -> tuple[str, list[str]]:
    """Return a tokenizer's JSON, and the name of the token that its folder calls padding, if it does."""
    path = Path(place).expanduser()
    if path.is_file():
        return _utf8(path, key), []
    if not path.is_dir():
        raise ConfigError(
            f"{key}: there is no folder {place}; give the folder of a tokenizer that is on this disk (nothing is fetched)"
        )
    if (path / _FILE).is_file():
        return _utf8(path / _FILE, key), _padding(path)
    _require("transformers", f"{key}: {place} has no {_FILE}, and a tokenizer of another form")
    stay_offline()
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        text = slow.backend_tokenizer.to_str()
    except Exception as error:  # each kind of tokenizer raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
        raise ConfigError(
            f"{key}: {place} holds no {_FILE}, and no tokenizer that transformers reads: {reason}"
        ) from error
    if len(slow) <= len(slow.all_special_tokens):
        raise ConfigError(
            f"{key}: {place} holds no {_FILE} and no vocabulary: every word would be unknown; give the folder with the "
            "tokenizer's files"
        )
    return text, [slow.pad_token] if slow.pad_token else []


def _utf8(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error}") from error


def _padding(folder: Path) -> list[str]:
    try:
        token = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("pad_token")
    except (OSError, ValueError, AttributeError):
        return []
    token = token.get("content") if isinstance(token, dict) else token
    return [token] if isinstance(token, str) else []


def _require(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f'{what} needs the package {package}: pip install "shoal[transfer]", or pip install {package}'
        )
