from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ingest import shelf
from ingest.shelf import Shelf
from workers.catalog_version import CatalogVersion


@pytest.fixture
def version(redis_db_url: str) -> Iterator[CatalogVersion]:
    with contextlib.closing(CatalogVersion(redis_db_url)) as one:
        yield one


class Reader:
    """Says what is on sale, and how often it was asked."""

    def __init__(self) -> None:
        self.times = 0
        self.now = b"one"

    def __call__(self) -> bytes:
        self.times += 1
        return self.now


def test_an_answer_is_kept_until_something_has_changed(redis_db_url: str, version: CatalogVersion) -> None:
    reader, kept = Reader(), Shelf(redis_db_url)
    assert [kept.answer(reader) for _ in range(3)] == [b"one"] * 3
    assert reader.times == 1
    reader.now = b"two"
    version.renew()
    assert [kept.answer(reader) for _ in range(3)] == [b"two"] * 3
    assert reader.times == 2


def test_what_was_read_before_a_change_is_not_kept_beyond_it(redis_db_url: str, version: CatalogVersion) -> None:
    """The change is committed and said while the reader is at it."""
    kept = Shelf(redis_db_url)

    def slow() -> bytes:
        version.renew()
        return b"old"

    kept.answer(slow)
    assert kept.answer(lambda: b"new") == b"new"


def test_an_answer_is_not_kept_for_long_if_nobody_says_anything(
    redis_db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "LONGEST_SECONDS", 0.05)
    reader, kept = Reader(), Shelf(redis_db_url)
    kept.answer(reader)
    time.sleep(0.06)
    kept.answer(reader)
    assert reader.times == 2


def test_with_redis_away_every_answer_is_read(own_valkey: Callable[..., Any]) -> None:
    valkey = own_valkey()
    reader, kept = Reader(), Shelf(valkey.redis_url)
    kept.answer(reader)
    valkey.stop()
    reader.now = b"two"
    begin = time.monotonic()
    assert [kept.answer(reader) for _ in range(5)] == [b"two"] * 5
    assert time.monotonic() - begin < 3
    assert reader.times == 6
