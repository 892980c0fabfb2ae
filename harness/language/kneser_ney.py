"""Trigrams with interpolated modified Kneser-Ney smoothing: what a language model has to beat.

    p(w | uv) = (c(uvw) - D(c)) / c(uv.) + share(uv) p(w | v)
    p(w | v)  = (c(.vw) - D(c)) / c(.v.) + share(v)  p(w)          c(.vw): how many tokens were seen before vw
    p(w)      = (c(.w) - D(c)) / c(..)   + share()   1 / V         c(.w):  how many tokens were seen before w

D takes one of three values per order, for counts of 1, 2, and 3 or more, from how many n-grams were seen once to four
times; `share` is what it took away. Chen and Goodman 1999 (Computer Speech and Language 13), section 3.
Legend: N trigrams or targets, V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]


class Trigrams(NamedTuple):
    """Targets with the two tokens before each; V stands where a document has none. [N] each"""

    before_last: Ids
    last: Ids
    target: Ids


@dataclass(frozen=True)
class _Order:
    """N-grams of one length: their smoothed counts, and those of their contexts."""

    keys: Ids
    """Sorted; context times (V + 1) plus token. [n]"""
    kept: Numbers
    """Count less its discount. [n]"""
    contexts: Ids
    """Sorted. [m]"""
    totals: Numbers
    """Counts of all n-grams of each context. [m]"""
    taken: Numbers
    """Discounts of all n-grams of each context. [m]"""


def discounts(counts: Ids) -> Numbers:
    """What is taken from counts of 0, 1, 2, and 3 or more. [4]

    Where the data are so few that a formula has no value or one that is not between 0 and the count, half a count.
    """
    n1, n2, n3, n4 = (float((counts == k).sum()) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.0
    pairs = ((1, n1, n2), (2, n2, n3), (3, n3, n4))
    found = [k - (k + 1) * y * more / one if one and more else 0.5 for k, one, more in pairs]
    return np.array([0.0, *(d if 0 < d < k else 0.5 for k, d in enumerate(found, 1))])


def _order(keys: Ids, counts: Ids, base: int) -> _Order:
    """An order from its n-grams, sorted and different, and how often each counts."""
    taken = discounts(counts)[np.minimum(counts, 3)]
    contexts, first = np.unique(keys // base, return_index=True)
    totals = np.add.reduceat(counts.astype(np.float64), first)
    return _Order(keys, counts - taken, contexts, totals, np.add.reduceat(taken, first))


class KneserNey:
    """A trigram model that was counted."""

    def __init__(self, seen: Trigrams, vocabulary: int) -> None:
        """
        Args:
            seen: one trigram at least.
            vocabulary: V; targets are below it. V + 1 to the third fits into 63 bits.
        """
        self.vocabulary, self.base = vocabulary, vocabulary + 1
        base = self.base
        three, counts = np.unique(_key(seen, base), return_counts=True)
        two, before_two = np.unique(three % base**2, return_counts=True)
        one, before_one = np.unique(two % base, return_counts=True)
        self._three = _order(three, counts.astype(np.int64), base)
        self._two = _order(two, before_two.astype(np.int64), base)
        self._one = _order(one, before_one.astype(np.int64), base)

    def probabilities(self, of: Trigrams) -> Numbers:
        """p(target | the two before it). [N]"""
        base = self.base
        lower = self._mixed(
            self._one, of.target, np.zeros_like(of.target), np.full(len(of.target), 1 / self.vocabulary)
        )
        lower = self._mixed(self._two, of.last * base + of.target, of.last, lower)
        return self._mixed(self._three, _key(of, base), of.before_last * base + of.last, lower)

    def _mixed(self, order: _Order, keys: Ids, contexts: Ids, lower: Numbers) -> Numbers:
        """This order above the one below it; a context that was never seen leaves all to the lower one. [N]"""
        kept = _found(order.keys, order.kept, keys)
        totals = _found(order.contexts, order.totals, contexts)
        taken = _found(order.contexts, order.taken, contexts)
        is_known = totals > 0
        mixed = (kept + taken * lower) / np.where(is_known, totals, 1.0)
        return np.where(is_known, mixed, lower)


def unigram(seen: Ids, targets: Ids, vocabulary: int) -> Numbers:
    """The share of each target among the tokens that were seen, one added to each count. [N]"""
    counts = np.bincount(seen, minlength=vocabulary) + 1.0
    return np.asarray(counts[targets] / counts.sum(), dtype=np.float64)


def _key(of: Trigrams, base: int) -> Ids:
    return (of.before_last * base + of.last) * base + of.target


def _found(known: Ids, values: Numbers, wanted: Ids) -> Numbers:
    """The value of each wanted key; 0 where it is not known. [N]"""
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, values[place], 0.0)
