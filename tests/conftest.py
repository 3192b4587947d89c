"""Real servers for the tests: one PostgreSQL and one Valkey per run, a fresh database per test.

`DATABASE_URL` and `REDIS_URL`, if given, name the servers to use instead. Nothing there is touched but databases that
the tests make themselves, named dues_test_…, and logical Redis databases that were empty.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, settings
from psycopg import sql
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from ops.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.support import ROOT

# Neither a slow example nor slow drawing is a finding: it tells of the machine.
settings.register_profile("dues", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("thorough", settings.get_profile("dues"), max_examples=5000)
settings.load_profile("dues")


def scratch_folder() -> Path:
    """A name for a server's folder: not pytest's `tmp_path`, which under root nobody else can enter."""
    return Path(tempfile.gettempdir(), f"dues-test-{secrets.token_hex(6)}")


def migrate(url: str) -> None:
    """Bring a database to the newest migration."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.begin() as connection:
        config = Config(toml_file=ROOT / "pyproject.toml")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextlib.contextmanager
def new_database(server_url: str, template: str = "template0") -> Iterator[str]:
    """The URL of a database of its own, dropped at the end whoever is still connected."""
    name = f"dues_test_{secrets.token_hex(6)}"
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    with contextlib.closing(psycopg.connect(server_url, autocommit=True)) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**names))
        try:
            yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {name} WITH (FORCE)").format(**names))


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The PostgreSQL of this run, not to be stopped: see `own_postgres` for that."""
    with EmbeddedPostgres(scratch_folder(), port=0, throwaway=True) as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    """The Valkey of this run, not to be stopped: see `own_valkey` for that."""
    with EmbeddedValkey(scratch_folder(), throwaway=True) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """A server where databases can be made, as a URL of libpq: `$DATABASE_URL`'s, else the embedded one."""
    given = os.environ.get("DATABASE_URL")
    if not given:
        return str(request.getfixturevalue("postgres").url)
    return make_url(given).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """The Redis or Valkey server of this run: `$REDIS_URL`, else the embedded one."""
    return os.environ.get("REDIS_URL") or str(request.getfixturevalue("valkey").redis_url)


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """The name of a database with every migration, to be copied, never used."""
    with new_database(postgres_url) as url:
        migrate(url)
        yield str(make_url(url).database)


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A migrated, empty database for this test alone."""
    with new_database(postgres_url, template_database) as url:
        yield url


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database for this test alone without any migration."""
    with new_database(postgres_url) as url:
        yield url


@pytest.fixture
def redis_db_url(redis_url: str) -> Iterator[str]:
    """A logical Redis database that is empty, and emptied again afterwards."""
    for number in range(15, 0, -1):
        url = urlsplit(redis_url)._replace(path=f"/{number}").geturl()
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            if client.dbsize() == 0:
                yield url
                client.flushdb()
                return
    pytest.fail("REDIS_URL: none of the logical databases 1 to 15 is empty, and tests delete nothing of others")


@pytest.fixture(scope="session")
def postgres_seed() -> Iterator[Path]:
    """The folder of a stopped PostgreSQL with a migrated database: copying it is quicker than making another."""
    server = EmbeddedPostgres(scratch_folder(), throwaway=True)
    with server:
        migrate(server.url)
        server.stop()
        yield server.home


def copy_folder(source: Path, target: Path) -> None:
    """Copy a server's folder with its owners and permissions, which Python's own copying loses."""
    subprocess.run(["cp", "-a", source, target], check=True)


@pytest.fixture
def own_postgres(postgres_seed: Path) -> Iterator[Callable[..., EmbeddedPostgres]]:
    """A factory of PostgreSQL servers, each with a migrated database, that the test may kill, freeze and restart.

    Keywords go to `EmbeddedPostgres`.
    """
    with contextlib.ExitStack() as servers:

        def make(**keywords: Any) -> EmbeddedPostgres:
            server = EmbeddedPostgres(scratch_folder(), **{"throwaway": True, **keywords})
            servers.callback(shutil.rmtree, server.home, ignore_errors=True)
            copy_folder(postgres_seed, server.home)
            return servers.enter_context(server)

        yield make


@pytest.fixture
def own_valkey() -> Iterator[Callable[..., EmbeddedValkey]]:
    """A factory of Valkey servers that the test may kill, freeze and restart; keywords go to `EmbeddedValkey`."""
    with contextlib.ExitStack() as servers:

        def make(**keywords: Any) -> EmbeddedValkey:
            server = EmbeddedValkey(scratch_folder(), **{"throwaway": True, **keywords})
            servers.callback(shutil.rmtree, server.home, ignore_errors=True)
            return servers.enter_context(server)

        yield make
