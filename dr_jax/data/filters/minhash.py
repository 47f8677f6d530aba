"""Find pairs of texts that share most of what they say, without comparing each with each.

In:    texts as bags of words, a word's copies counting its weight
Out:   candidate pairs: those that agree in all rows of at least one band
Maths: two sets agree in a min-wise hash with the probability of their Jaccard similarity (Broder, 1997); with b bands of r
       rows, a pair of similarity s is a candidate with probability 1 - (1 - s^r)^b (Indyk and Motwani, 1998)

Our own in numpy and not a library's, because signatures go into a build's content hash and must not change with a version,
and because one call per text costs more than everything else in a build does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MIX = np.uint64(0x9E3779B97F4A7C15)


class MinHash:
    """Signatures of sets of 64-bit features.

    Args:
        bands: of a signature.
        rows: of a band.
        seed: of the hash functions.
    """

    def __init__(self, bands: int = 42, rows: int = 3, seed: int = 0) -> None:
        self.bands, self.rows = bands, rows
        self._factors = _drawn(f"factors {seed}", bands * rows) | np.uint64(1)
        self._shifts = _drawn(f"shifts {seed}", bands * rows)

    def signatures(self, sets: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
        """Return one row of `bands * rows` hashes per set; a set without features agrees with nothing but another such."""
        out = np.full((len(sets), self.bands * self.rows), 0xFFFFFFFF, dtype=np.uint32)
        filled = [index for index, one in enumerate(sets) if len(one)]
        if not filled:
            return out
        features = np.concatenate([sets[index] for index in filled])
        features = (features ^ (features >> np.uint64(31))) * _MIX  # multiply-shift needs its input well mixed
        features ^= features >> np.uint64(29)
        starts = np.cumsum([0, *(len(sets[index]) for index in filled[:-1])])
        for number, (factor, shift) in enumerate(zip(self._factors, self._shifts, strict=True)):
            hashed = ((features * factor + shift) >> np.uint64(32)).astype(np.uint32)
            out[filled, number] = np.minimum.reduceat(hashed, starts)
        return out

    def band_keys(self, signatures: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return one number per signature and band, equal where all rows of the band are."""
        parts = signatures.reshape(len(signatures), self.bands, self.rows).astype(np.uint64)
        keys = np.zeros(parts.shape[:2], dtype=np.uint64)
        for row in range(self.rows):
            keys = (keys ^ parts[:, :, row]) * _MIX
            keys ^= keys >> np.uint64(32)
        return keys


class Index:
    """Signatures to look candidates up in.

    Args:
        hashing: made the signatures.
        signatures: one row per text.
    """

    def __init__(self, hashing: MinHash, signatures: NDArray[np.uint32]) -> None:
        self._hashing, self._signatures = hashing, signatures
        keys = hashing.band_keys(signatures)
        self._order = np.argsort(keys, axis=0, kind="stable")
        self._keys = np.take_along_axis(keys, self._order, axis=0)

    def candidates(self, signatures: NDArray[np.uint32], at_least: float) -> NDArray[np.int64]:
        """Return pairs (row of `signatures`, row of the index) that meet in a band and look at least so similar.

        Args:
            signatures: of the texts that are looked up.
            at_least: share of equal hashes, an estimate of the similarity with standard error sqrt(s (1 - s) / hashes).
        """
        count = len(self._signatures)
        if not count or not len(signatures):
            return np.empty((0, 2), dtype=np.int64)
        keys = self._hashing.band_keys(signatures)
        found: list[NDArray[np.int64]] = []
        for band in range(self._hashing.bands):
            low = np.searchsorted(self._keys[:, band], keys[:, band], side="left")
            width = np.searchsorted(self._keys[:, band], keys[:, band], side="right") - low
            asked = np.repeat(np.arange(len(keys)), width)
            within = np.arange(len(asked)) - np.repeat(np.cumsum(width) - width, width)
            met = self._order[np.repeat(low, width) + within, band]
            found.append(asked * count + met)
        pairs = np.unique(np.concatenate(found))
        left, right = pairs // count, pairs % count
        kept: list[NDArray[np.int64]] = []
        for start in range(0, len(pairs), 1 << 16):  # the comparison of all pairs at once could be larger than memory
            cut = slice(start, start + (1 << 16))
            alike = (signatures[left[cut]] == self._signatures[right[cut]]).mean(axis=1)
            kept.append(np.stack([left[cut], right[cut]], axis=1)[alike >= at_least])
        return np.concatenate(kept) if kept else np.empty((0, 2), dtype=np.int64)


def _drawn(name: str, count: int) -> NDArray[np.uint64]:
    """Numbers that depend on the name alone, whatever numpy's generators become."""
    return np.frombuffer(hashlib.shake_128(name.encode()).digest(8 * count), dtype="<u8").astype(np.uint64)
