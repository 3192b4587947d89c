"""Ids that look like Stripe's and depend on nothing but a seed, a prefix and a count."""

import hashlib
from collections import Counter

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def token(text: str, length: int = 22) -> str:
    """`length` (≤ 40) letters and digits that stand for `text`, equal for equal texts."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest())
    letters = []
    for _ in range(length):
        number, digit = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[digit])
    return "".join(letters)


class Ids:
    """Gives out `prefix_…` ids; two seeds share none, and one kind's count does not move another's ids."""

    def __init__(self, seed: int | str) -> None:
        self._seed = seed
        self._counts: Counter[str] = Counter()

    def new(self, prefix: str) -> str:
        """The next id with this prefix, such as `sub_1…`."""
        self._counts[prefix] += 1
        return prefix + token(f"{self._seed}:{prefix}:{self._counts[prefix]}")
