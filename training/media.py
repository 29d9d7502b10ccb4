"""Texts and images of a batch: out of the block behind its category codes, to the tensors that a body asks for by name.

Shape legend: B rows, C channels, H height, W width, L tokens.
"""

import torch
from torch import Tensor, nn

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Column, Schema
from shoal.cluster.sharding.names import listed
from shoal.training.config import READS, AugmentConfig
from shoal.training.draws import Drawing

NAMES = ("image", "text", "text_mask")  # what `Media` gives


class Media(nn.Module):
    """The text and the image of each row, as tensors by name.

    Parameters
    ----------
    schema
        Of the rows.

    Raises
    ------
    ConfigError
        If several columns are texts, or several are images.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._places: dict[str, tuple[Column, int]] = {}
        start = len(schema.categorical)
        for column in schema.media:
            if column.type in self._places:
                both = listed(repr(c.name) for c in schema.media if c.type == column.type)
                raise ConfigError(
                    f"columns {both} are {column.type}s, and a model reads one of them: leave the others out with data.drop"
                )
            self._places[column.type] = column, start
            start += column.block
        self.reads_image = "image" in self._places
        if self.reads_image:
            pixels = self._places["image"][0].pixels
            assert pixels is not None
            shape = (1, pixels.channels, 1, 1)
            self.register_buffer("mean", 255 * torch.tensor(pixels.mean).view(shape), persistent=False)
            self.register_buffer("std", 255 * torch.tensor(pixels.std).view(shape), persistent=False)
        self.augment: Augment | None = None

    mean: Tensor
    std: Tensor

    def forward(self, codes: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return ``image`` ``[B, C, H, W]``, and ``text`` int64 ``[B, L]`` with ``text_mask`` bool ``[B, L]``; those there are.

        Parameters
        ----------
        codes
            int32 ``[B, categories + blocks]``.
        dtype
            Of the image, whose pixels are (value / 255 - mean) / std.
        """
        found: dict[str, Tensor] = {}
        for kind, (column, start) in self._places.items():
            block = codes[:, start : start + column.block]
            if column.pixels is not None:
                size = column.pixels
                raw = block.contiguous().view(torch.uint8)[:, : size.bytes]
                image = raw.view(-1, size.height, size.width, size.channels).permute(0, 3, 1, 2).to(dtype)
                image = (image - self.mean) / self.std
                found[kind] = image.contiguous() if self.augment is None else self.augment(image.contiguous())
            elif column.tokens is not None:
                mask = block >= 0
                found[kind] = block.masked_fill(~mask, column.tokens.padding).long()
                found[f"{kind}_mask"] = mask
        return found


class Augment(Drawing):
    """Images cut at random from padded ones, and mirrored at random, in training; the identity otherwise.

    The draws are hashes of (seed, step, layer, row): no other number of workers gives others.

    References
    ----------
    Krizhevsky, Sutskever and Hinton (2012), "ImageNet classification with deep convolutional neural networks", section 4.1.
    """

    def __init__(self, config: AugmentConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, image: Tensor) -> Tensor:
        """Move and mirror ``[B, C, H, W]``; what lies outside of an image is its mean colour, 0."""
        if not self.training:
            return image
        b, _, height, width = image.shape
        most = self.config.crop
        draws = self.draws(b, 3)  # [B, 3], in [0, 1)
        down, right = (((2 * most + 1) * draws[:, i]).long().to(image.device) - most for i in range(2))
        rows = torch.arange(height, device=image.device) + down[:, None]  # [B, H]
        columns = torch.arange(width, device=image.device).expand(b, width)
        if self.config.flip:
            columns = torch.where((draws[:, 2:] < 0.5).to(image.device), columns.flip(1), columns)
        columns = columns + right[:, None]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
            :, None, :
        ]
        flat = (
            rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        )  # [B, H, W]
        moved = image.flatten(2).gather(2, flat.flatten(1)[:, None, :].expand(-1, image.shape[1], -1))
        return moved.view_as(image) * inside[:, None]


def augment(model: nn.Module, config: AugmentConfig) -> None:
    """Let a model move and mirror its images in training.

    Raises
    ------
    ConfigError
        If it reads none.
    """
    found = [module for module in model.modules() if isinstance(module, Media) and module.reads_image]
    if not found:
        raise ConfigError("training.augment is for images, and no column is one: leave it out")
    for media in found:
        media.augment = Augment(config)


def refuse_unread(schema: Schema, read: frozenset[str], model: str) -> None:
    """Refuse a text or an image that a model does not read, and a model for one that is not there.

    Parameters
    ----------
    read
        Which of `NAMES` the model asks for.
    model
        How it is called.

    Raises
    ------
    ConfigError
        With the column, and what reads it.
    """
    there = {column.type: (column.name, column.of_kind) for column in schema.media}
    for kind, (name, of_kind) in there.items():
        if kind not in read:
            own = next(name for name, read_by in READS.items() if read_by == kind)
            raise ConfigError(
                f"{model} does not read {kind}s, and column {name!r} is {of_kind}: use model: {own}, pretrained, a module of "
                f"your own whose forward names {kind}, or leave the column out with data.drop"
            )
    for kind in ("image", "text"):
        if kind in read and kind not in there:
            raise ConfigError(
                f"{model} reads {kind}s, and no column is one: name it with data.types: {{COLUMN: {{{kind}: …}}}}, or use "
                "another model"
            )
