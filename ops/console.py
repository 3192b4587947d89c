"""What the commands share: settings, a connection, times, tables and JSON for people and scripts."""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from models.settings import Settings, read_settings, require
from ops import lifeline
from ops.failures import Failed

if TYPE_CHECKING:
    from sqlalchemy import Engine

STATE = Path(".dues")
# Where the servers of a running `dues dev` are, and what it holds while it runs.
RUNNING = STATE / "env"
LOCK = STATE / "lock"

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")


# --- settings -----------------------------------------------------------------------------------------------------


def load_environment() -> None:
    """In development, add what `.env` and a running `dues dev` of this folder say; the real environment wins."""
    if _is_development():
        _load(Path(".env"))
    # What a killed `dues dev` left there leads nowhere.
    if _is_development() and RUNNING.is_file() and is_development_running():
        _load(RUNNING)


def _is_development() -> bool:
    return os.environ.get("DUES_ENV") in {None, "", "development"}


def is_set(name: str) -> bool:
    """Whether the environment gives a setting, itself or in a file."""
    return bool(os.environ.get(name) or os.environ.get(f"{name}_FILE"))


def _load(path: Path) -> None:
    if not path.is_file():
        return
    from dotenv import dotenv_values

    try:
        values = dotenv_values(path)
    except UnicodeDecodeError:
        raise Failed(f"{path} is not UTF-8 text.") from None
    for name, value in values.items():
        if value and not is_set(name):
            os.environ[name] = value


@contextlib.contextmanager
def only_development_here() -> Iterator[bool]:
    """Be the one `dues dev` of this folder until the end of the block; False if another process is."""
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        is_ours = lifeline.is_free(fd)
        if is_ours:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield is_ours
    finally:
        os.close(fd)


def is_development_running() -> bool:
    """Whether a `dues dev` of this folder is running."""
    if not LOCK.is_file():
        return False
    fd = os.open(LOCK, os.O_RDWR)
    try:
        return not lifeline.is_free(fd)
    finally:
        os.close(fd)


def development_pid() -> str:
    """The process id of the running `dues dev`."""
    return LOCK.read_text()


def settings(*required: str) -> Settings:
    """Return the settings of this process; raises SettingsError, also if one of these variables is not set."""
    return require(read_settings(os.environ), *required)


@dataclass(frozen=True, slots=True)
class Database:
    """A database to work on, with the settings that led there."""

    engine: Engine
    settings: Settings


@contextlib.contextmanager
def database(application: str, *, statement_timeout: float | None = None) -> Iterator[Database]:
    """Connections to the database that DATABASE_URL names; `statement_timeout` in seconds."""
    from models.database import connect

    given = settings("DATABASE_URL")
    if statement_timeout is not None:
        given = replace(given, statement_timeout=statement_timeout)
    engine = connect(given, application=application)
    try:
        yield Database(engine, given)
    finally:
        engine.dispose()


def version() -> str:
    """Return the version of Dues."""
    import importlib.metadata

    try:
        return importlib.metadata.version("dues")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def operator() -> str:
    """Name the account of the person at the keyboard, for the record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account number without a name, as in many containers
        return f"uid {os.getuid()}"


# --- times --------------------------------------------------------------------------------------------------------


def iso(moment: datetime | None) -> str | None:
    """Write a time as every answer of Dues does: ISO 8601, UTC, milliseconds, Z."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Moment(click.ParamType[datetime]):
    """A time: ISO 8601 (UTC unless it says otherwise), or how long ago: 90s, 30m, 2h, 7d."""

    name = "time"
    UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012 - never changed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it, or end with a usage error."""
        if isinstance(value, datetime):
            return value
        ago = re.fullmatch(r"([0-9]{1,6})([smhd])", value)
        try:
            if ago:
                return datetime.now(UTC) - timedelta(**{self.UNITS[ago[2]]: int(ago[1])})
            moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither a time like 2026-01-31T12:00:00Z nor how long ago, like 2h or 7d", param, ctx
            )
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# --- answers ------------------------------------------------------------------------------------------------------


def print_json(answer: Any) -> None:
    """Print one JSON object; times as ISO 8601."""
    click.echo(json.dumps(answer, ensure_ascii=False, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    return str(value)


def print_table(rows: Sequence[Sequence[Any]], heads: Sequence[str], *, indent: str = "") -> None:
    """Print rows in columns."""
    texts = [list(heads), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(heads))]
    for row in texts:
        click.echo(indent + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def cell(value: Any) -> str:
    """Write one value for people: times in full, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(iso(value) or "" if isinstance(value, datetime) else str(value))


def printable(text: str) -> str:
    """Make text of strangers harmless for a terminal: control characters are shown, not obeyed."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def confirm(question: str, *, yes: bool) -> None:
    """Ask; without a terminal to ask on, `--yes` has to answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failed(f"{question} Nobody is there to answer: say --yes.")
    if not click.confirm(question, err=True):
        raise Failed("Nothing was changed.")


# --- addresses ----------------------------------------------------------------------------------------------------


def require_free(bind: str) -> None:
    """Raise Failed if something listens on host:port: a second server would share its requests instead of failing."""
    if bind.startswith("unix:"):
        return
    parts = urlsplit(f"//{bind}")
    try:
        host, port = parts.hostname or "127.0.0.1", parts.port or 8000
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except ValueError:
        raise Failed(f"--bind {bind} is not an address like 127.0.0.1:8000.") from None
    except OSError as error:
        why = "is taken by another process" if error.errno == errno.EADDRINUSE else f"can't be used ({error.strerror})"
        raise Failed(f"{bind} {why}: choose another address with --bind.") from None
