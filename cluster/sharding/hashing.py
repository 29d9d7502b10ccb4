"""Row identity: 64-bit hashes of values and of whole rows.

A row is known by its content, never by its place in a file, so that every assignment comes out the same
whatever the order, number or names of the input files. A row's key is the sum over its columns of a
mixed hash of (column name, value); equal rows have equal keys, and a missing value adds nothing, so a new
column that is empty in old rows leaves their keys alone. Integers, floats and booleans of equal value hash
equally, and so do equal times of any unit: a column keeps its hashes when a later file widens its type.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal.cluster.sharding.arrays import EXACT, indices, is_bytes, is_text, numbers

U64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31 = np.uint64(27), np.uint64(30), np.uint64(31)
_BLOCK = 1 << 14
_PRIME = np.uint64(0x9FB21C651E98DF25)  # odd, so powers of it never become zero
_MICROSECONDS = {"D": 86_400_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}
_LARGEST = {"i": float(np.nextafter(2.0**63, 0)), "u": float(np.nextafter(2.0**64, 0))}


def mix(values: U64) -> U64:
    """Scramble 64-bit values one to one: the finaliser of SplitMix64.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, figure 17.
    """
    out = np.array(values, np.uint64, order="C")
    flat = out.reshape(-1)
    work = np.empty(min(_BLOCK, flat.size), np.uint64)
    for start in range(0, flat.size, _BLOCK):  # a block stays in the processor's cache
        z = flat[start : start + _BLOCK]
        shifted = work[: len(z)]
        z += _GOLDEN
        for shift, factor in ((_U30, _FIRST), (_U27, _SECOND), (_U31, None)):
            np.right_shift(z, shift, out=shifted)
            z ^= shifted
            if factor is not None:
                z *= factor
    return out


def salt(text: str) -> np.uint64:
    """Return a 64-bit constant of a text, such as a column name."""
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the generator of a draw: the first word of its key says what it is for."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def seeded(keys: U64, seed: int) -> U64:
    """Return the keys in another order for each seed; one to one."""
    return mix(keys ^ salt(f"seed {seed}"))


def hash_values(array: pa.Array, name: str) -> U64 | None:
    """Hash each value of a column.

    Parameters
    ----------
    array
        Any array that `arrays.normalise` returns.
    name
        The column's name; equal values of two columns hash differently.

    Returns
    -------
    uint64 ``[n]``, 0 where missing (null or NaN); None for types that hold no comparable values (maps,
    variable lists).
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        lut = hash_values(array.dictionary, name)
        if lut is None:
            return None
        return take(lut, array)
    if is_text(kind) or is_bytes(kind):
        hashes = mix(_hash_bytes(array) ^ salt(name))
    elif pa.types.is_fixed_size_list(kind):
        return _hash_lists(array, name)
    elif pa.types.is_null(kind):
        return np.zeros(len(array), np.uint64)
    elif pa.types.is_nested(kind):
        return None
    else:
        hashes, missing = _hash_numbers(array, salt(name))
        if missing is not None:
            hashes[missing] = 0
        return hashes
    if array.null_count:
        hashes[_nulls(array)] = 0
    return hashes


def take(lut: U64, array: pa.DictionaryArray) -> U64:
    """Spread hashes of a dictionary over the rows; 0 where missing."""
    return np.asarray(np.append(lut, np.uint64(0))[indices(array)])


def _nulls(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _hash_numbers(array: pa.Array, key: np.uint64) -> tuple[U64, npt.NDArray[np.bool_] | None]:
    beyond = None
    if pa.types.is_temporal(array.type):
        array, beyond = _ticks(array)
    values = numbers(array)
    missing = np.isnan(values)
    hashes = mix((values + 0.0).view(np.uint64) ^ key)  # + 0.0 makes -0.0 one with 0.0
    if pa.types.is_integer(array.type) and len(array) and np.nanmax(np.abs(values), initial=0) > EXACT:
        exact = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
        # The largest integers round up to 2**63 or 2**64, which their type does not hold.
        rounded = np.minimum(np.where(missing, 0, values), _LARGEST[exact.dtype.kind]).astype(exact.dtype)
        rest = exact - rounded
        hashes = np.where(rest == 0, hashes, mix(hashes ^ rest.astype(np.uint64)))
    if beyond is not None and beyond.any():
        hashes = np.where(beyond == 0, hashes, mix(hashes ^ beyond.astype(np.uint64)))
    return hashes, missing if missing.any() else None


def _ticks(array: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Return dates and times of any unit in microseconds, and the nanoseconds beyond them, int64 ``[n]``."""
    kind = array.type
    raw = array.view(pa.int64() if kind.bit_width == 64 else pa.int32()).cast(pa.int64())
    ticks = pc.fill_null(raw, 0).to_numpy(zero_copy_only=False)
    unit = "D" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    beyond = ticks % 1000 if unit == "ns" else np.zeros_like(ticks)
    ticks = ticks // 1000 if unit == "ns" else ticks * _MICROSECONDS[unit]
    return pa.array(ticks, mask=_nulls(array)), beyond


def _hash_lists(array: pa.FixedSizeListArray, name: str) -> U64:
    width = array.type.list_size
    flat = hash_values(array.values.slice(array.offset * width, len(array) * width), name)
    if flat is None:
        return np.zeros(len(array), np.uint64)
    position = mix(np.arange(width, dtype=np.uint64))
    hashes = mix((flat.reshape(len(array), width) ^ position).sum(axis=1, dtype=np.uint64))
    if array.null_count:
        hashes[_nulls(array)] = 0
    return hashes


def _hash_bytes(array: pa.Array) -> U64:
    """Return a polynomial hash of each value's bytes, modulo 2**64, without a Python loop over values."""
    if pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.binary())
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    n = len(array)
    offsets = (
        np.frombuffer(array.buffers()[1], np.int64 if wide else np.int32) if n else np.zeros(1, np.int32)
    )
    offsets = offsets[array.offset : array.offset + n + 1].astype(np.int64) if n else offsets.astype(np.int64)
    lengths = np.diff(offsets)
    out = mix(lengths.astype(np.uint64))
    if n == 0 or offsets[-1] == offsets[0]:
        return out
    data = np.frombuffer(array.buffers()[2], np.uint8)
    powers = np.multiply.accumulate(np.full(int(lengths.max()), _PRIME))
    # Long columns go in pieces, because a byte needs 24 bytes of work space.
    start = 0
    while start < n:
        stop = int(np.searchsorted(offsets, offsets[start] + (1 << 22), side="right")) - 1
        stop = min(n, max(start + 1, stop))
        low, high = offsets[start], offsets[stop]
        filled = np.flatnonzero(lengths[start:stop]) + start
        if high > low:
            place = np.arange(high - low) - np.repeat(offsets[start:stop] - low, lengths[start:stop])
            terms = _BYTES[data[low:high]] * powers[place]
            out[filled] += np.add.reduceat(terms, offsets[filled] - low)
        start = stop
    return out


_BYTES: U64 = mix(np.arange(1, 257, dtype=np.uint64))
