"""What one reading of a column tells of it, in bounded memory and whatever the order of the rows."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal.cluster.sharding.arrays import is_number, is_stamp, is_tensor, is_text, numbers, parse_stamps
from shoal.cluster.sharding.hashing import U64, hash_values, take

SAMPLE = 4096
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"
_DAY = 86_400_000_000


@dataclass
class Facts:
    """Counts over all rows of a column; `merge` adds two, in any order with equal result.

    Parameters
    ----------
    name
        The column.
    rows, missing, infinite
        Counts of rows; NaN is missing.
    low, high
        Smallest and largest number; exact, as int, for integers.
    hash_sum
        Sum of the value hashes, modulo 2**64: equal multisets have equal sums.
    sample
        Hash to count of the `SAMPLE` distinct values with the smallest hashes; complete when there are fewer.
    length, spaces
        Characters and spaces over all texts.
    iso
        Whether every text is an ISO 8601 date or time stamp.
    timed
        Whether a date or time stamp has a time of day.
    """

    name: str
    rows: int = 0
    missing: int = 0
    infinite: int = 0
    low: float = np.inf
    high: float = -np.inf
    hash_sum: int = 0
    sample: dict[int, int] = field(default_factory=dict)
    length: int = 0
    spaces: int = 0
    iso: bool = True
    timed: bool = False

    @property
    def present(self) -> int:
        """Rows that have a value."""
        return self.rows - self.missing

    @property
    def distinct(self) -> float:
        """Number of distinct values: exact up to `SAMPLE`, then estimated.

        References
        ----------
        Beyer, Haas, Reinwald, Sismanis and Gemulla (2007), On synopses for distinct-value estimation: the
        unbiased
        k-minimum-values estimator, (k - 1) / (the k-th smallest hash as a fraction).
        """
        if len(self.sample) < SAMPLE:
            return float(len(self.sample))
        return (SAMPLE - 1) / (max(self.sample) / 2.0**64)

    @property
    def all_distinct(self) -> bool:
        """Whether no value came twice; beyond `SAMPLE` values judged on the sampled ones."""
        return self.present > 0 and all(count == 1 for count in self.sample.values())

    def merge(self, other: "Facts") -> None:
        """Add what was seen elsewhere."""
        self.rows += other.rows
        self.missing += other.missing
        self.infinite += other.infinite
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.hash_sum = (self.hash_sum + other.hash_sum) % 2**64
        for value, count in other.sample.items():
            self.sample[value] = self.sample.get(value, 0) + count
        if len(self.sample) > SAMPLE:
            self.sample = {value: self.sample[value] for value in sorted(self.sample)[:SAMPLE]}
        self.length += other.length
        self.spaces += other.spaces
        self.iso = self.iso and other.iso
        self.timed = self.timed or other.timed

    def contiguous(self) -> bool:
        """Whether the values are distinct integers without a gap, as a row counter's."""
        span = self.high - self.low + 1
        if not self.present or span != self.present or self.missing or not np.isfinite(span):
            return False
        # The sum of the hashes proves that every integer of the range is there; in pieces, to bound the
        # memory.
        total = 0
        kind = np.uint64 if self.high >= 2**63 else np.int64
        for start in range(int(self.low), int(self.high) + 1, 1 << 20):
            stop = min(start + (1 << 20), int(self.high) + 1)
            hashes = hash_values(pa.array(np.arange(stop - start).astype(kind) + kind(start)), self.name)
            total += 0 if hashes is None else int(hashes.sum(dtype=np.uint64))
        return total % 2**64 == self.hash_sum


def look(array: pa.Array, name: str) -> tuple[Facts, U64 | None]:
    """Return the facts of a column's piece and the hash of each of its values.

    Parameters
    ----------
    array
        From `arrays.normalise`.
    name
        The column.

    Returns
    -------
    The facts, and uint64 ``[n]`` or None for types that cannot be hashed.
    """
    facts = Facts(name, rows=len(array), missing=array.null_count)
    if pa.types.is_dictionary(array.type):
        lut = hash_values(array.dictionary, name)
        hashes = None if lut is None else take(lut, array)
        if lut is not None:
            counts = np.bincount(_codes(array), minlength=len(lut))
            _sample(facts, lut, counts)
            if is_text(array.type):
                _text(facts, array.dictionary, counts)
        return facts, hashes
    hashes = hash_values(array, name)
    if is_number(array.type) or pa.types.is_boolean(array.type):
        values = numbers(array)
        if pa.types.is_floating(array.type) and not np.isfinite(values).all():
            facts.missing = int(np.isnan(values).sum())
            facts.infinite = int(np.isinf(values).sum())
        if facts.present:
            facts.low, facts.high = float(np.nanmin(values)), float(np.nanmax(values))
        if pa.types.is_integer(array.type) and hashes is not None:
            facts.hash_sum = int(hashes.sum(dtype=np.uint64))
            if facts.present:  # exactly: a float64 has 53 bits
                facts.low, facts.high = pc.min_max(array).as_py().values()
    elif is_tensor(array.type):
        facts.infinite = int(np.isinf(numbers(array.flatten())).sum())
    elif is_stamp(array.type):
        facts.timed = _timed(array)
    return facts, hashes


def _codes(array: pa.DictionaryArray) -> npt.NDArray[np.int64]:
    indices = array.indices.drop_null() if array.indices.null_count else array.indices
    return np.asarray(indices.to_numpy(zero_copy_only=False))


def _sample(facts: Facts, lut: U64, counts: npt.NDArray[np.int64]) -> None:
    used = np.flatnonzero(counts)
    hashes, counts = lut[used], counts[used]
    if len(used) > SAMPLE:
        least = np.argpartition(hashes, SAMPLE)[:SAMPLE]
        hashes, counts = hashes[least], counts[least]
    facts.sample = dict(zip(hashes.tolist(), counts.tolist(), strict=True))


def _text(facts: Facts, dictionary: pa.Array, counts: npt.NDArray[np.int64]) -> None:
    lengths = pc.utf8_length(dictionary).to_numpy(zero_copy_only=False)
    spaces = pc.count_substring(dictionary, " ").to_numpy(zero_copy_only=False)
    facts.length, facts.spaces = int(lengths @ counts), int(spaces @ counts)
    used = dictionary.filter(pa.array(counts > 0)) if (counts == 0).any() else dictionary
    # The first value settles it for nearly every column; the rest are looked at only where it is a date.
    for piece in (used.slice(0, 1), used):
        if not facts.iso:
            return
        facts.iso = bool(pc.all(pc.match_substring_regex(piece, _ISO_DATE)).as_py() in (True, None))
    try:
        facts.timed = _timed(parse_stamps(used))
    except pa.ArrowInvalid:
        facts.iso = False


def _timed(array: pa.Array) -> bool:
    if pa.types.is_date(array.type):
        return False
    tz = getattr(array.type, "tz", None)
    values = array.cast(pa.timestamp("us", tz=tz), safe=False).view(pa.int64()).drop_null()
    return bool((values.to_numpy(zero_copy_only=False) % _DAY != 0).any())
