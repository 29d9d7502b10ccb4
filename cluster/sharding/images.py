"""Images as bytes of pixels: decoded, cut and scaled by Pillow, once, when shards are written or rows are predicted."""

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.cluster.config import StorageConfig
from shoal.cluster.errors import DataError, StorageError
from shoal.cluster.filesystems import locate
from shoal.cluster.sharding.arrays import described, is_bytes, is_text
from shoal.cluster.sharding.config import ImageConfig
from shoal.cluster.sharding.manifest import Column, Pixels, Schema
from shoal.cluster.sharding.names import plural

if TYPE_CHECKING:
    from PIL.Image import Image

_ABSOLUTE = re.compile(r"^(/|~|[A-Za-z][A-Za-z0-9+.-]+://)")


def pixels_of(config: ImageConfig) -> Pixels:
    """Return how the images of a column become pixels."""
    height, width = config.pixels
    depth = config.depth
    mean, std = (v if isinstance(v, tuple) else (v,) * depth for v in (config.mean, config.std))
    return Pixels(height=height, width=width, channels=depth, raw=config.shape, mean=mean, std=std)


def rooted(schema: Schema, places: Sequence[str], storage: StorageConfig) -> Schema:
    """Return a schema whose paths of images begin in the folder that data files share.

    Parameters
    ----------
    places
        Of the data files.
    storage
        How to reach them.
    """
    if not any(column.pixels for column in schema.columns):
        return schema
    folder = _shared_folder(places)
    columns = tuple(
        column
        if column.pixels is None
        else column.model_copy(
            update={"pixels": column.pixels.model_copy(update={"folder": folder, "storage": storage})}
        )
        for column in schema.columns
    )
    return schema.model_copy(update={"columns": columns})


def pixels(array: pa.Array, column: Column, private: bool = False) -> npt.NDArray[np.int32]:
    """Return the pixels of images as int32 ``[n, block]``, whose bytes are uint8 ``[height, width, channels]``, then zeros.

    A missing image is one of the mean colour, which a model gets as zeros.

    Raises
    ------
    DataError
        If values are neither bytes nor paths, or one cannot be read as an image.
    """
    found = column.pixels
    assert found is not None
    if not (is_bytes(array.type) or is_text(array.type) or pa.types.is_null(array.type)):
        raise DataError(
            f"column {column.name!r} is {described(array.type)}, expected images: their bytes, or paths of their files"
        )
    rows = np.zeros((len(array), 4 * found.block), np.uint8)
    mean = np.rint(255 * np.array(found.mean)).astype(np.uint8)
    missing = np.broadcast_to(mean, (found.height, found.width, found.channels)).reshape(-1)
    for row, value in enumerate(array.to_pylist()):
        rows[row, : found.bytes] = missing if value is None else _image(value, column, found, private)
    return rows.view(np.int32)


def _image(value: str | bytes, column: Column, found: Pixels, private: bool) -> npt.NDArray[np.uint8]:
    """Return uint8 ``[height * width * channels]``."""
    import PIL.Image
    import PIL.ImageOps

    shown = "" if private or not isinstance(value, str) else f" {value}"
    try:
        data = _file(value, found) if isinstance(value, str) else value
        if found.raw is not None and isinstance(value, bytes):
            image = _raw(data, found.raw)
        else:
            image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
        image = image.convert("L" if found.channels == 1 else "RGB")
        size = (found.width, found.height)
        if image.size != size:
            image = PIL.ImageOps.fit(image, size, PIL.Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, StorageError, PIL.Image.DecompressionBombError) as error:
        reason = "" if private else f" ({_why(error)})"
        fix = "mend it, make it null (missing), or leave the column out with data.drop"
        if isinstance(value, bytes) and found.raw is None:
            fix += "; bytes that are pixels need their shape, such as {image: {shape: [28, 28]}}"
        raise DataError(
            f"column {column.name!r} has a value{shown} that is no image{reason}: {fix}"
        ) from error
    return np.asarray(image, np.uint8).reshape(-1)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    said = str(error).strip().splitlines()
    return "it is of no format that is known" if not said or "BytesIO" in said[0] else said[0].rstrip(".")


def _raw(data: bytes, shape: tuple[int, ...]) -> "Image":
    from PIL.Image import fromarray

    if len(data) != math.prod(shape):
        raise ValueError(f"{plural(len(data), 'byte')}, and shape {list(shape)} needs {math.prod(shape):,}")
    values = np.frombuffer(data, np.uint8).reshape(shape)
    return fromarray(values[:, :, 0] if len(shape) == 3 and shape[2] == 1 else values)


def _file(path: str, found: Pixels) -> bytes:
    place = path if _ABSOLUTE.match(path) or not found.folder else f"{found.folder}/{path}"
    _, filesystem, where = locate(place, found.storage)
    with filesystem.open_input_file(where) as source:
        return bytes(source.read())


def _shared_folder(places: Sequence[str]) -> str:
    folders = [place.split("?")[0].rpartition("/")[0].split("/") for place in places]
    shared = folders[0]
    for other in folders[1:]:
        same = [a == b for a, b in zip(shared, other, strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    return "/".join(shared)
