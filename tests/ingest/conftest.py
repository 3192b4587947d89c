"""Applications and receivers, some shared by the tests of a module: to start one takes longer than to ask it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest
from flask import Flask

from ingest import create_app
from models.settings import read_settings
from ops.embedded import EmbeddedValkey
from tests.conftest import new_database, scratch_folder
from tests.ingest.serving import Receiver, receiver, settings_of


@contextlib.contextmanager
def application(database_url: str, redis_url: str, **more: str) -> Iterator[Flask]:
    app = create_app(read_settings({**settings_of(database_url, redis_url), **more}))
    try:
        yield app
    finally:
        app.extensions["bell"].close()
        app.extensions["database"].close()


@pytest.fixture
def app(database_url: str, redis_db_url: str) -> Iterator[Flask]:
    """The web application in this process, with a database of its own."""
    with application(database_url, redis_db_url) as app:
        yield app


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection]:
    """A look into the database of the test."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def served(database_url: str, redis_db_url: str) -> Iterator[Receiver]:
    """A receiver in a process of its own, with a database of its own: the test may end it."""
    with receiver(settings_of(database_url, redis_db_url)) as served:
        yield served


@pytest.fixture(scope="module")
def shared_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A migrated database for the tests of a module."""
    with new_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[str]:
    with EmbeddedValkey(scratch_folder(), throwaway=True) as server:
        yield server.redis_url


@pytest.fixture(scope="module")
def shared_app(shared_url: str, shared_redis: str) -> Iterator[Flask]:
    """The web application in this process, for the tests of a module."""
    with application(shared_url, shared_redis) as app:
        yield app


@pytest.fixture(scope="module")
def shared_receiver(shared_url: str, shared_redis: str) -> Iterator[Receiver]:
    """A receiver in a process of its own, for the tests of a module that leave it as it is."""
    with receiver(settings_of(shared_url, shared_redis)) as served:
        yield served


@pytest.fixture
def ledger(shared_url: str) -> Iterator[psycopg.Connection]:
    """The shared database with nothing in its ledger."""
    with psycopg.connect(shared_url, autocommit=True) as connection:
        connection.execute("TRUNCATE stripe_events")
        yield connection
