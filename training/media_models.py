"""Small networks for an image and for a text; numbers and categories join them before the last layers.

Shape legend: B rows, C channels, H height, W width, L tokens, E encoded features, K outputs.
"""

import torch
from torch import Tensor, nn

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema
from shoal.training.config import CNNConfig, EmbeddingBagConfig

_GRID = 4  # of cells a side, whose means are what convolutions leave of an image
_GROUP = 8  # channels that are normalised together


class ConvNet(nn.Module):
    """Convolution, group normalisation, ReLU and maximum over 2 x 2, a few times; then two linear layers."""

    def __init__(
        self, config: CNNConfig, channels: int, size: tuple[int, int], n_encoded: int, n_outputs: int
    ) -> None:
        super().__init__()
        if min(size) >> len(config.channels) < 1:
            raise ConfigError(
                f"model.cnn.channels: {len(config.channels)} layers halve an image of {size[0]} x {size[1]} pixels to nothing; "
                "use fewer, or larger images"
            )
        layers: list[nn.Module] = []
        for width in config.channels:
            groups = max(1, width // _GROUP) if width % _GROUP == 0 else 1
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.GroupNorm(groups, width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        self.convolutions = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(_GRID)
        self.head = _head(channels * _GRID**2 + n_encoded, config.hidden, config.dropout, n_outputs)

    def forward(self, image: Tensor, encoded: Tensor) -> Tensor:
        """Return ``[B, K]`` for ``[B, C, H, W]`` and ``[B, E]``."""
        seen = self.pool(self.convolutions(image)).flatten(1)
        logits: Tensor = self.head(torch.cat([seen, encoded], dim=1))
        return logits


class MeanOfTokens(nn.Module):
    """The mean of the embeddings of a text's tokens, then two linear layers.

    References
    ----------
    Iyyer et al. (2015), "Deep unordered composition rivals syntactic methods for text classification", section 3.
    """

    def __init__(self, config: EmbeddingBagConfig, vocabulary: int, n_encoded: int, n_outputs: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.head = _head(config.width + n_encoded, config.hidden, config.dropout, n_outputs)

    def forward(self, text: Tensor, text_mask: Tensor, encoded: Tensor) -> Tensor:
        """Return ``[B, K]`` for ``[B, L]``, ``[B, L]`` and ``[B, E]``; a text without tokens has a mean of 0."""
        weights = text_mask.to(encoded.dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1.0)
        mean = torch.bmm(weights[:, None, :], self.tokens(text))[:, 0]
        logits: Tensor = self.head(torch.cat([mean, encoded], dim=1))
        return logits


def media_body(
    config: CNNConfig | EmbeddingBagConfig, schema: Schema, n_encoded: int, n_outputs: int
) -> nn.Module:
    """Build the body of `model.cnn` or `model.embedding_bag` for the text or the image of a schema."""
    column = schema.media[0]
    if isinstance(config, CNNConfig):
        assert column.pixels is not None
        found = column.pixels
        return ConvNet(config, found.channels, (found.height, found.width), n_encoded, n_outputs)
    assert column.tokens is not None
    return MeanOfTokens(config, column.tokens.vocabulary, n_encoded, n_outputs)


def _head(width: int, hidden: int, dropout: float, n_outputs: int) -> nn.Sequential:
    between = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), *between, nn.Linear(hidden, n_outputs))
