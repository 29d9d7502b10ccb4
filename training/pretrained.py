"""A network of Hugging Face's from a local folder: its architecture here, its weights by `transfer.start`. Nothing is fetched.

Shape legend: B rows, C channels, H height, W width, L tokens, E encoded features, K outputs.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.cluster.errors import ConfigError
from shoal.cluster.sharding.manifest import Schema
from shoal.cluster.sharding.texts import stay_offline
from shoal.training.config import PretrainedConfig
from shoal.training.media import refuse_unread

BACKBONE = "body.backbone."  # what the network's own names have in front
_CONFIG = "config.json"
_INPUTS = {"input_ids": "text", "pixel_values": "image"}
# Dropout in functions, whose draws would depend on the number of workers; layers of dropout stay.
_FUNCTIONAL = (
    "attention_probs_dropout_prob",
    "attention_dropout",
    "attn_pdrop",
    "drop_path_rate",
    "layerdrop",
)


class PretrainedBody(nn.Module):
    """A network, the mean or the first of what it gives, and a linear layer; see `PretrainedText` and `PretrainedImage`."""

    def __init__(
        self, backbone: nn.Module, config: PretrainedConfig, width: int, n_encoded: int, n_outputs: int
    ) -> None:
        super().__init__()
        self.backbone, self.pool = backbone, config.pool
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width + n_encoded, n_outputs)

    def answer(self, pooled: Tensor, encoded: Tensor) -> Tensor:
        """Return ``[B, K]``."""
        logits: Tensor = self.head(torch.cat([self.dropout(pooled), encoded], dim=1))
        return logits


class PretrainedText(PretrainedBody):
    """Of texts; the mean is over the tokens that there are."""

    def forward(self, text: Tensor, text_mask: Tensor, encoded: Tensor) -> Tensor:
        """Return ``[B, K]`` for ``[B, L]``, ``[B, L]`` and ``[B, E]``."""
        found: Tensor = self.backbone(input_ids=text, attention_mask=text_mask.long()).last_hidden_state
        if self.pool == "first":
            return self.answer(found[:, 0], encoded)
        weights = text_mask.to(found.dtype)[:, :, None]
        return self.answer((found * weights).sum(1) / weights.sum(1).clamp(min=1.0), encoded)


class PretrainedImage(PretrainedBody):
    """Of images; the mean is over places, or over patches and the class token."""

    def forward(self, image: Tensor, encoded: Tensor) -> Tensor:
        """Return ``[B, K]`` for ``[B, C, H, W]`` and ``[B, E]``."""
        found: Tensor = self.backbone(pixel_values=image).last_hidden_state
        found = found.flatten(2).transpose(1, 2) if found.dim() == 4 else found
        return self.answer(found[:, 0] if self.pool == "first" else found.mean(1), encoded)


def architecture_of(config: PretrainedConfig) -> dict[str, Any]:
    """Return what ``config.json`` of the folder holds, or held when the model was trained.

    Raises
    ------
    ConfigError
        If the folder is not one of Hugging Face's.
    """
    if config.architecture is not None:
        return config.architecture
    file = Path(config.path).expanduser() / _CONFIG
    if not file.is_file():
        raise ConfigError(
            f"model.pretrained.path: {config.path} holds no {_CONFIG}; give the folder of a model that is on this disk "
            "(nothing is fetched), as save_pretrained writes it"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.pretrained.path: {file} cannot be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        timm = isinstance(found, dict) and "architecture" in found
        raise ConfigError(
            f"model.pretrained.path: {file} names no model_type of Hugging Face's"
            + (", but an architecture of timm's" if timm else "")
            + "; build others by a function of your own (model: {import: my_module:factory}) and give their weights as "
            "transfer.start: weights.safetensors"
        )
    return found


def stored(config: PretrainedConfig) -> PretrainedConfig:
    """Return the component as a trained model keeps it: with the architecture, so that it needs no folder."""
    return config.model_copy(update={"architecture": architecture_of(config)})


def pretrained_body(
    config: PretrainedConfig, schema: Schema, n_encoded: int, n_outputs: int
) -> PretrainedBody:
    """Build the network with weights that are draws.

    Raises
    ------
    ConfigError
        If transformers is missing or does not know it, or it does not take the text or the image that is there.
    """
    architecture = architecture_of(config)
    backbone = _backbone(architecture, config.path)
    name = f"model: pretrained ({architecture['model_type']})"
    kind = _INPUTS.get(getattr(backbone, "main_input_name", ""))
    if kind is None:
        raise ConfigError(f"{name} reads neither a text nor an image; use another model")
    refuse_unread(schema, frozenset({kind}), name)
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        backbone.pooler = None  # what it gives is not read
    given = _example(backbone, schema, name)
    try:
        with torch.no_grad():
            shape = backbone.eval()(**given).last_hidden_state.shape
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        size = getattr(backbone.config, "image_size", None)  # where it fits any, nothing was raised
        fix = (
            f"; set data.types.{schema.media[0].name}.image.size: {size}" if kind == "image" and size else ""
        )
        raise ConfigError(
            f"{name} does not take {schema.media[0].of_kind} of this size, or alone: {said.rstrip('.')}{fix}"
        ) from error
    width = shape[1] if len(shape) == 4 else shape[-1]
    body = PretrainedText if kind == "text" else PretrainedImage
    return body(backbone.train(), config, width, n_encoded, n_outputs)


def require_transformers() -> None:
    """Refuse a pretrained network where transformers is missing, and keep it from fetching and from talking.

    Raises
    ------
    ConfigError
        With the command that installs it.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            'model.pretrained needs the package transformers: pip install "shoal[transfer]", or pip install transformers'
        )
    stay_offline()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _backbone(architecture: dict[str, Any], path: str) -> Any:
    require_transformers()
    from transformers import AutoConfig, AutoModel

    values = {name: value for name, value in architecture.items() if name not in ("model_type", "auto_map")}
    try:
        config = AutoConfig.for_model(architecture["model_type"], **values)
        for name in _FUNCTIONAL:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        return AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:  # every architecture raises its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model.pretrained.path: the {_CONFIG} of {path} describes no network that transformers builds without code from "
            f"elsewhere: {said}"
        ) from error


def _example(backbone: Any, schema: Schema, name: str) -> dict[str, Tensor]:
    """Return one row as the network takes it.

    Raises
    ------
    ConfigError
        If a text has more tokens than the network knows, or an image other channels.
    """
    config, column = backbone.config, schema.media[0]
    if column.tokens is not None:
        known, most = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
        if known is not None and column.tokens.vocabulary > known:
            raise ConfigError(
                f"{name} knows {known:,} tokens, and the tokenizer of {column.name!r} has {column.tokens.vocabulary:,}: give the "
                f"tokenizer that belongs to it (data.types.{column.name}.text.tokenizer)"
            )
        if most is not None and column.tokens.max_length > most:
            raise ConfigError(
                f"{name} reads at most {most} tokens; set data.types.{column.name}.text.max_length: {most}, or fewer"
            )
        tokens = torch.full((1, column.tokens.max_length), column.tokens.padding)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    pixels = column.pixels
    assert pixels is not None
    channels = getattr(config, "num_channels", None)
    if channels is not None and channels != pixels.channels:
        raise ConfigError(
            f"{name} reads {channels} channels, and column {column.name!r} has {pixels.channels}: set "
            f"data.types.{column.name}.image.channels: {channels}"
        )
    return {"pixel_values": torch.zeros(1, pixels.channels, pixels.height, pixels.width)}
