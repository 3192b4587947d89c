"""The `dues` command for tests, with a migrated database or without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.ops.command_line import Dues


@pytest.fixture
def bare(tmp_path: Path) -> Dues:
    """`dues` without any setting."""
    return Dues(tmp_path, {})


@pytest.fixture
def dues(tmp_path: Path, database_url: str) -> Dues:
    """`dues` with a migrated, empty database."""
    return Dues(tmp_path, {"DATABASE_URL": database_url})


@pytest.fixture
def plain(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection to the same database that is not Dues's own; every statement is committed."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection
