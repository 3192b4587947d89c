from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from flask import Flask

from ingest import create_app
from models.settings import read_settings
from tests.ingest.serving import Receiver, receiver, settings_of


@pytest.fixture
def app(database_url: str, redis_db_url: str) -> Iterator[Flask]:
    """The web application in this process, with a database of its own."""
    app = create_app(read_settings(settings_of(database_url, redis_db_url)))
    yield app
    app.extensions["bell"].close()
    app.extensions["database"].close()


@pytest.fixture
def served(database_url: str, redis_db_url: str) -> Iterator[Receiver]:
    """A receiver in a process of its own, with a database of its own."""
    with receiver(settings_of(database_url, redis_db_url)) as served:
        yield served


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection]:
    """A look into the database of the test."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection
