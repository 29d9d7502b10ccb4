"""What a model gets of texts and images, augmentation, the two built-in networks, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from support.media import image_dataset, pictures, save_tokenizer
from support.scenarios import CPU, Error, weights
from support.together import run_together
from torch import nn

from shoal.cluster.components import Imported
from shoal.cluster.config import Config
from shoal.cluster.errors import ConfigError
from shoal.cluster.progress import Silent
from shoal.cluster.sharding.config import TextConfig
from shoal.cluster.sharding.manifest import Column, Schema, Target
from shoal.cluster.sharding.texts import tokens, tokens_of
from shoal.training.batches import EVALUATION_ROWS, evaluation_rows
from shoal.training.config import (
    AugmentConfig,
    CNNConfig,
    EmbeddingBagConfig,
    LinearConfig,
    MLPConfig,
    TrainingConfig,
)
from shoal.training.draws import DrawContext, install_draws
from shoal.training.loop import Loop
from shoal.training.media import Augment, Media, augment
from shoal.training.models import build_model
from shoal.training.strategies.base import Strategy
from shoal.training.strategies.ddp import DDP

TEXTS = ["good film", "the plot was great", ""]
IMPORTED = Imported.model_validate({"import": "a:b"})


def text_schema(folder: Path, *more: Column) -> Schema:
    column = Column(
        name="review",
        type="text",
        arrow_type="text",
        tokens=tokens_of("review", TextConfig(tokenizer=str(save_tokenizer(folder)), max_length=5)),
    )
    return Schema(columns=(column, *more), target=Target(columns=("y",), task="binary", classes=(0, 1)))


def test_an_image_comes_standardised_with_its_channels_first() -> None:
    dataset = image_dataset(30, 1)
    codes = torch.from_numpy(np.array(dataset.parts["validation"].categorical))
    found = Media(dataset.schema)(codes, torch.float64)
    expected = (pictures(30)[0][:10].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5
    assert list(found) == ["image"]
    np.testing.assert_allclose(found["image"].numpy(), expected, atol=1e-6)


def test_a_text_comes_with_its_mask_and_padding(tmp_path: Path) -> None:
    category = Column(
        name="kind", type="categorical", arrow_type="string", categories=("a",), value_type="string"
    )
    schema = text_schema(tmp_path, category)
    codes = np.hstack([np.full((3, 1), 2, np.int32), tokens(pa.array(TEXTS), schema.columns[0])])
    found = Media(schema)(torch.from_numpy(codes), torch.float32)
    assert found["text_mask"].sum(1).tolist() == [4, 5, 2]  # two special tokens each, one text is cut
    assert found["text"].tolist()[0] == [2, 7, 10, 3, 0]
    assert found["text"].dtype == torch.int64


class Everything(nn.Module):
    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(5 + n_inputs, n_outputs)
        self.seen: dict[str, torch.Size] = {}

    def forward(self, text: torch.Tensor, encoded: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        self.seen = {"text": text.shape, "encoded": encoded.shape, "mask": text_mask.shape}
        return self.head(torch.cat([text * text_mask, encoded], 1))


def test_a_module_of_the_users_gets_what_its_forward_names(tmp_path: Path) -> None:
    number = Column(name="x", type="numeric", arrow_type="double", parts=("value",), has_missing=True)
    schema = text_schema(tmp_path, number)
    model = build_model(IMPORTED, schema, 0, factory=Everything)
    codes = torch.from_numpy(tokens(pa.array(TEXTS), schema.columns[0]))
    assert model(torch.randn(3, 1), codes).shape == (3, 1)
    assert isinstance(model.body, Everything)
    assert model.body.seen == {"text": (3, 5), "encoded": (3, 2), "mask": (3, 5)}


def test_the_mean_of_tokens_leaves_padding_out(tmp_path: Path) -> None:
    schema = text_schema(tmp_path)
    model = build_model(EmbeddingBagConfig(width=4, hidden=3), schema, 0).eval()
    codes = torch.from_numpy(tokens(pa.array(TEXTS), schema.columns[0]))
    body: Any = model.body
    own = torch.stack(
        [body.tokens(torch.tensor(ids)).mean(0) for ids in ([2, 7, 10, 3], [2, 9, 13, 11, 3], [2, 3])]
    )
    torch.testing.assert_close(model(torch.zeros(3, 0), codes), body.head(own))


def drawn(config: AugmentConfig, rows: torch.Tensor, step: int = 0) -> Augment:
    layer = Augment(config)
    layer.context = DrawContext(3, step, rows)
    return layer


def test_augmented_images_are_moved_and_mirrored_ones() -> None:
    image = torch.arange(1.0, 1 + 2 * 5 * 4).view(1, 2, 5, 4).repeat(400, 1, 1, 1)
    found = drawn(AugmentConfig(flip=True, crop=2), torch.arange(400))(image)
    padded = np.pad(image[0].numpy(), ((0, 0), (2, 2), (2, 2)))
    crops = {}
    for flip in (False, True):
        source = np.pad(image[0].numpy()[:, :, ::-1], ((0, 0), (2, 2), (2, 2))) if flip else padded
        for down in range(5):
            for right in range(5):
                crops[source[:, down : down + 5, right : right + 4].tobytes()] = (flip, down, right)
    assert len(crops) == 50
    seen = [crops[one.numpy().tobytes()] for one in found]  # nothing else
    counts = np.bincount([flip * 25 + down * 5 + right for flip, down, right in seen], minlength=50)
    assert stats.chisquare(counts).pvalue > 1e-4  # each as likely


def test_augmentation_draws_by_row_and_step_and_is_off_in_evaluation() -> None:
    image, config = torch.randn(60, 1, 6, 6), AugmentConfig(flip=True, crop=2)
    whole = drawn(config, torch.arange(60))(image)
    torch.testing.assert_close(
        drawn(config, torch.arange(20, 50))(image[20:50]), whole[20:50], rtol=0, atol=0
    )
    assert not torch.equal(drawn(config, torch.arange(60), step=1)(image), whole)
    assert drawn(config, torch.arange(60)).eval()(image) is image
    model = build_model(CNNConfig(channels=(4,), hidden=4), image_dataset().schema, 0)
    augment(model, config)
    context = DrawContext(1, 2, torch.arange(5))
    install_draws(model, context)
    assert model.encoder.media is not None
    assert model.encoder.media.augment is not None
    assert model.encoder.media.augment.context is context


def image_fit(strategy: Strategy) -> np.ndarray:
    dataset = image_dataset()
    model = build_model(CNNConfig(channels=(4, 8), hidden=8, dropout=0.3), dataset.schema, 1)
    section = TrainingConfig.model_validate(
        {"epochs": 3, "batch_size": 20, "precision": "fp64", "augment": {"flip": True, "crop": 2}}
    )
    loop = Loop(model, dataset, section, strategy, Error(), 3, Silent())  # type: ignore[arg-type]
    loop.run()
    return weights(loop)


def together() -> np.ndarray:
    return image_fit(DDP(CPU))


def test_two_workers_and_one_agree_on_augmented_images(tmp_path: Path) -> None:
    alone = image_fit(Strategy(CPU))
    for found in run_together(tmp_path, 2, together):
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-10)


def test_models_and_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pictures_, words = image_dataset().schema, text_schema(tmp_path)
    cases: list[tuple[Config, Schema, str]] = [
        (MLPConfig(), pictures_, r"mlp does not read images, and column 'photo' is an image: use model: cnn"),
        (
            LinearConfig(),
            words,
            r"linear does not read texts, and column 'review' is a text: use model: embedding_bag",
        ),
        (EmbeddingBagConfig(), pictures_, "embedding_bag does not read images"),
        (CNNConfig(channels=(4,) * 4), pictures_, "4 layers halve an image of 8 x 8 pixels to nothing"),
        (
            Imported.model_validate({"import": "sklearn.linear_model:LogisticRegression"}),
            words,
            "LogisticRegression does not read texts",
        ),
    ]
    for config, schema, said in cases:
        with pytest.raises(ConfigError, match=said):
            build_model(config, schema, 0)
    number = Column(name="x", type="numeric", arrow_type="double", parts=("value",))
    plain = Schema(columns=(number,), target=words.target)
    with pytest.raises(
        ConfigError, match=r"cnn reads images, and no column is one: .*data.types: \{COLUMN: \{image: …\}\}"
    ):
        build_model(CNNConfig(), plain, 0)
    twice = words.model_copy(
        update={"columns": (*words.columns, words.columns[0].model_copy(update={"name": "more"}))}
    )
    with pytest.raises(
        ConfigError, match="columns 'review', 'more' are texts, and a model reads one of them"
    ):
        build_model(EmbeddingBagConfig(), twice, 0)
    with pytest.raises(ConfigError, match="training.augment is for images"):
        augment(build_model(MLPConfig(), plain, 0), AugmentConfig(flip=True))


def test_passes_of_large_rows_have_fewer() -> None:
    assert evaluation_rows(0) == evaluation_rows(30) == EVALUATION_ROWS
    assert evaluation_rows(196) == 668
    assert evaluation_rows(3 * 224 * 224 // 4) == 16
