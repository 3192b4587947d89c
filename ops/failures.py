"""Failures in one sentence that says what to do, without anybody's secrets."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback as tracebacks
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import click

CANNOT_REACH = "PostgreSQL can't be reached ({}). Is it running, and is DATABASE_URL right?"
SCHEMA = "The database does not have the tables that this version of Dues needs ({}): run `dues db upgrade`."
BUSY = "Something else held a lock for too long ({}): try again, with the workers stopped if need be."
FORBIDDEN = "The database role may not do that: {}."

# PostgreSQL's codes (https://www.postgresql.org/docs/current/errcodes-appendix.html) that have one likely cause.
SQLSTATES = {
    "3F000": SCHEMA,
    "42P01": SCHEMA,
    "42703": SCHEMA,
    "42704": SCHEMA,
    "42883": SCHEMA,
    "40P01": BUSY,
    "55P03": BUSY,
    "57014": BUSY,
    "42501": FORBIDDEN,
    "25006": "The database takes no writes now (a standby?): {}.",
}


class Failed(click.ClickException):
    """What was asked for could not be done; the message says why and what to do."""

    exit_code = 2


def _plainly(error: BaseException) -> str:
    return str(error)


def _settings(error: BaseException) -> str:
    hint = (
        ""
        if "DATABASE_URL is not set" not in str(error)
        else " `dues dev`, running in this folder, would bring a database."
    )
    return f"Settings: {error}. `.env.example` describes every setting.{hint}"


def _database(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    first_line = (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")
    code = getattr(cause, "sqlstate", None)
    if code is None and type(cause).__name__ == "OperationalError":
        return CANNOT_REACH.format(first_line)
    return SQLSTATES.get(code or "", f"PostgreSQL refused ({code}): {{}}.").format(first_line)


def _alembic(error: BaseException) -> str:
    return (
        f"{error}. If it is the database that is newer than this version of Dues, upgrade Dues."
        if "Can't locate revision" in str(error)
        else f"Alembic: {error}."
    )


# Classes by name, so that nothing is imported only to be compared with.
SENTENCES: dict[str, Callable[[BaseException], str]] = {
    "models.settings.SettingsError": _settings,
    "sqlalchemy.exc.DBAPIError": _database,
    "sqlalchemy.exc.ArgumentError": lambda _: "DATABASE_URL is not an address that can be read.",
    "sqlalchemy.exc.TimeoutError": lambda _: CANNOT_REACH.format("no connection came free in time"),
    "psycopg.Error": _database,
    "alembic.util.exc.CommandError": _alembic,
    "ops.embedded.EmbeddedServerError": _plainly,
    "workers.reconcile.BusyError": _plainly,
    "workers.stripe_api.StripeApiError": lambda error: f"Stripe: {error}.",
    "workers.link.UnsettledError": lambda _: "Links kept changing meanwhile: try again.",
    "builtins.OSError": _plainly,
}


def sentence(error: BaseException) -> str:
    """Say what went wrong; of an error that nobody foresaw only its kind and place, since messages quote data."""
    for kind in type(error).__mro__:
        told = SENTENCES.get(f"{kind.__module__}.{kind.__qualname__}")
        if told:
            return told(error)
    frame = tracebacks.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).parent.name}/{Path(frame.filename).name}:{frame.lineno}"
    return f"Unexpected {type(error).__name__} at {place}: a fault in Dues. `dues --traceback …` shows the way there."


def without_secrets(text: str) -> str:
    """Take out whatever the environment holds as a secret."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets() -> set[str]:
    values = {
        name: value for name, value in os.environ.items() if re.search(r"URL|SECRET|KEY|TOKEN|PASSWORD", name) and value
    }
    found = {part for name, value in values.items() if not name.endswith("URL") for part in value.split(",")}
    for value in values.values():
        in_url = re.match(r"[^:/]+://[^:/@]*:([^@]+)@", value)
        found |= {in_url[1], unquote(in_url[1])} if in_url else set()
    # Shorter ones would blot out words, and protect nothing.
    return {secret for secret in found if len(secret) >= 4}


@contextlib.contextmanager
def in_one_sentence(*, traceback: bool) -> Iterator[None]:
    """Turn errors of what is run inside into one sentence and exit code 2."""
    stack = contextlib.ExitStack()

    def tell(_: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, click.Abort | KeyboardInterrupt | EOFError):
            raise Failed("Stopped; nothing more was done.") from None
        if error is None or isinstance(error, click.ClickException | click.exceptions.Exit | SystemExit):
            return False
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0)
        if traceback:
            click.echo(without_secrets("".join(tracebacks.format_exception(error))), err=True)
        raise Failed(without_secrets(sentence(error))) from None

    stack.push(tell)
    with stack:
        yield
