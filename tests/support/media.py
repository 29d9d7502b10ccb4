"""Small images and texts that can be learned, and a tokenizer made from a vocabulary of our own."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from shoal.cluster.sharding.config import ImageConfig
from shoal.cluster.sharding.images import pixels, pixels_of
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.training.memory import ArrayDataset, ArrayPart

WORDS = ("bad", "dull", "fine", "good", "great", "the", "film", "was", "a", "plot")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def pictures(n: int, seed: int = 0, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 ``[n, side, side, 3]`` that are brighter at the top or at the bottom, and which: bool ``[n]``."""
    draw = np.random.default_rng(seed)
    label = draw.random(n) < 0.5
    found = draw.integers(0, 120, (n, side, side, 3))
    found[label, : side // 2] += 80
    found[~label, side // 2 :] += 80
    return found.astype(np.uint8), label


def encoded(values: np.ndarray, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, kind)
    return sink.getvalue()


def image_table(n: int = 160, seed: int = 0) -> pa.Table:
    found, label = pictures(n, seed)
    draw = np.random.default_rng(seed + 1)
    return pa.table(
        {
            "photo": pa.array([encoded(one) for one in found]),
            "price": draw.normal(size=n),
            "kind": draw.choice(["a", "b"], n),
            "key": [f"k{i:04d}" for i in range(n)],
            "y": np.where(label, "yes", "no"),
        }
    )


def image_dataset(n: int = 120, n_shards: int = 4) -> ArrayDataset:
    """Return prepared images with a target of two classes, in memory."""
    found, label = pictures(n)
    config = ImageConfig(shape=(8, 8, 3))
    column = Column(name="photo", type="image", arrow_type="binary", pixels=pixels_of(config))
    schema = Schema(columns=(column,), target=Target(columns=("y",), task="binary", classes=(False, True)))
    codes = pixels(pa.array([one.tobytes() for one in found]), column)
    numeric = np.empty((n, 0), np.float32)
    third = n // 3
    parts = {
        name: ArrayPart(numeric[part], codes[part], label[part].astype(np.int64))
        for name, part in (("train", slice(third, None)), ("validation", slice(0, third)))
    }
    return ArrayDataset(schema, parts, n_shards)


def text_table(n: int = 200, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    label = draw.random(n) < 0.5
    words = [
        " ".join([*draw.choice(WORDS[5:], 4), str(draw.choice(WORDS[3:5] if yes else WORDS[:2]))])
        for yes in label
    ]
    return pa.table(
        {
            "review": words,
            "stars": draw.normal(size=n),
            "key": [f"k{i:04d}" for i in range(n)],
            "y": np.where(label, "yes", "no"),
        }
    )


def save_tokenizer(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    """Write a tokenizer of whole words with the special tokens of BERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def save_bert(folder: Path, vocabulary: int = len(WORDS) + len(SPECIAL), seed: int = 0) -> Path:
    """Write a small BERT with a head of its own, as save_pretrained does."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    """Write a small vision transformer for images of 8 x 8."""
    import torch
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    ViTModel(config).save_pretrained(folder)
    return folder
