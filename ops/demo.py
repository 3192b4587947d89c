"""`dues demo`: everything Dues is made of, in a scratch folder of its own, and a simulated Stripe that plays."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from models.database import connect
from models.settings import VARIABLES, read_settings
from ops import console, failures, migrating, processes
from ops.embedded import EmbeddedPostgres, EmbeddedValkey, free_port
from ops.failures import Failed
from ops.narrator import BOLD, DIM, GREEN, Narrator
from ops.story import Play, Result, Stage, Stopped
from ops.supervise import Program, Supervisor

WORKERS = 2
DRAIN_SECONDS = 5.0
READY_SECONDS = 60.0
LOG_LINES = 40
# What would lead libpq, Celery or the metrics somewhere else, whatever we are given below.
LEADING_ELSEWHERE = ("PG", "CELERY", "PROMETHEUS_")
KEPT = frozenset({"PG_BIN_DIR"})

INTRODUCTION = (
    "Stripe is simulated. Its events travel as Stripe's do: signed, in any order, some of them twice,",
    "here even in the shapes of two API versions. All else is real, and there for this alone: nothing of",
    "yours is touched.",
)


def isolate(environ: MutableMapping[str, str]) -> None:
    """Take out whatever could lead to a database, broker or account of somebody's, or change what is decided."""
    for name in list(environ):
        if name.removesuffix("_FILE") in VARIABLES or (name.startswith(LEADING_ELSEWHERE) and name not in KEPT):
            del environ[name]


@dataclass(frozen=True, slots=True)
class Log:
    """The last lines that the processes wrote, to be shown if something goes wrong."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))

    def write(self, name: str, line: str) -> None:
        """Keep a line of a process."""
        self.lines.append(f"{name:8} │ {console.printable(line)}")


class _Handler(logging.Handler):
    """Keeps what this process logs among the lines of the others."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write("demo", self.format(record))


@dataclass(frozen=True, slots=True)
class Wish:
    """How somebody wants the demo; `seed` changes ids and the order of delivery."""

    once: bool
    seed: int
    as_json: bool


def run(wish: Wish) -> None:
    """Play the story; then end, or wait for Ctrl-C. Raises Failed if the database does not get where it should.

    The telling goes to stdout; with `as_json` it goes to stderr, and what came of it to stdout as one JSON object.
    """
    began = time.monotonic()
    isolate(os.environ)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    narrator, log = Narrator(sys.stderr if wish.as_json else sys.stdout), Log()
    logging.basicConfig(level=logging.INFO, handlers=[_Handler(log)], format="%(message)s")
    try:
        _run(wish, narrator, log, began)
    except KeyboardInterrupt:
        _tell_failure(wish, Stopped(), began)
        raise Stopped from None
    except Exception as error:
        if not isinstance(error, Stopped | BrokenPipeError):
            for line in log.lines:
                narrator.say(line, DIM)
        _tell_failure(wish, error, began)
        raise


def _tell_failure(wish: Wish, error: Exception, began: float) -> None:
    if wish.as_json:
        sentence = error.message if isinstance(error, Failed) else failures.sentence(error)
        console.print_json({"ok": False, "error": sentence, "took_s": _since(began)})


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _run(wish: Wish, narrator: Narrator, log: Log, began: float) -> None:
    narrator.say("Dues demo", BOLD)
    for line in INTRODUCTION:
        narrator.say(line)
    narrator.say()
    with _servers(narrator) as (postgres, valkey), _database(narrator, postgres) as engine:
        bind = f"127.0.0.1:{free_port()}"
        secret = f"whsec_{secrets.token_hex(16)}"
        environment = {
            # Not development, where every process would read the `.env` of this folder.
            "DUES_ENV": "staging",
            "DATABASE_URL": postgres.tcp_url,
            "REDIS_URL": valkey.redis_url,
            "STRIPE_WEBHOOK_SECRET": secret,
        }
        supervisor = Supervisor(_programs(bind, environment), drain=DRAIN_SECONDS, output=log.write)
        stage = Stage(
            engine=engine,
            database_url=postgres.tcp_url,
            redis_url=valkey.redis_url,
            webhook=f"http://{bind}/webhooks/stripe",
            secret=secret,
            is_stopping=lambda: supervisor.is_stopping,
        )
        with ThreadPoolExecutor(1) as thread:
            telling = thread.submit(_tell, wish, stage, narrator, began)
            telling.add_done_callback(lambda told: supervisor.stop() if wish.once or told.exception() else None)
            try:
                supervisor.run()
            finally:
                supervisor.stop()
        telling.result()


def _programs(bind: str, environment: dict[str, str]) -> list[Program]:
    programs = [*processes.receiver(bind), *processes.worker((), WORKERS), *processes.beat()]
    return [Program(one.name, one.module, one.arguments, environment) for one in programs]


@contextlib.contextmanager
def _servers(narrator: Narrator) -> Iterator[tuple[EmbeddedPostgres, EmbeddedValkey]]:
    """Both servers in one folder: it is PostgreSQL's, so that it goes with it also if we are killed."""
    home = Path(tempfile.gettempdir(), f"dues-demo-{secrets.token_hex(8)}")
    with contextlib.ExitStack() as stack:
        with narrator.doing(f"PostgreSQL and Valkey in {home}"):
            postgres = stack.enter_context(EmbeddedPostgres(home, port=0, throwaway=True))
            valkey = stack.enter_context(EmbeddedValkey(home / "valkey", throwaway=True))
        yield postgres, valkey


@contextlib.contextmanager
def _database(narrator: Narrator, postgres: EmbeddedPostgres) -> Iterator[Engine]:
    engine = connect(read_settings({"DATABASE_URL": postgres.tcp_url}), application="demo")
    try:
        with narrator.doing("tables"):
            migrating.upgrade(engine)
        yield engine
    finally:
        engine.dispose()


# --- the story, in a thread beside the supervisor -----------------------------------------------------------------


def _tell(wish: Wish, stage: Stage, narrator: Narrator, began: float) -> None:
    with narrator.doing(f"receiver at {stage.webhook}, {WORKERS} Celery workers, beat"):
        _wait_for_receiver(stage)
    came = Play(stage, narrator, wish.seed).play()
    took = _since(began)
    _sum_up(narrator, came, took)
    if wish.as_json:
        console.print_json(answer(came, took))
    if not wish.once:
        _show_around(narrator, stage, came)


def _wait_for_receiver(stage: Stage) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(stage.webhook.replace("/webhooks/stripe", "/readyz")):
        if stage.is_stopping():
            raise Stopped
        if time.monotonic() > deadline:
            raise Failed(f"The receiver was not ready after {READY_SECONDS:.0f} s.")
        time.sleep(0.05)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - http:// it is
        return bool(answer.status == 200)
    return False


def answer(came: Result, took_s: float) -> dict[str, Any]:
    """What `--json` prints."""
    keys = ("email", "role", "membership_status", "tokens", "tokens_expires_at")
    users = [{key: user[key] for key in keys} for user in came.users]
    return {"ok": True, "events": came.events, "users": users, "took_s": took_s}


def _sum_up(narrator: Narrator, came: Result, took: float) -> None:
    heads = ["email", "role", "membership_status", "product"]
    if any(user["tokens"] for user in came.users):
        heads += ["tokens", "tokens_expires_at"]
    narrator.say()
    narrator.say("In the end", BOLD)
    narrator.table([[console.cell(user[head]) for head in heads] for user in came.users], heads)
    counted = ", ".join(f"{number} {status}" for status, number in came.events.items())
    narrator.say()
    narrator.say("    After every step the database was what the simulated Stripe's own state implies.", GREEN)
    narrator.say(f"    {counted}; those that Dues has no use for are kept, too.", DIM)
    narrator.say(f"    {took:.1f} s", DIM)


def _show_around(narrator: Narrator, stage: Stage, came: Result) -> None:
    dues, python = _command(), shlex.quote(sys.executable)
    lines = (
        "In another terminal, as long as this one runs:",
        "",
        f"    export DATABASE_URL={shlex.quote(stage.database_url)}",
        f"    {dues} events list",
        f"    {dues} users show {came.users[0]['email']}",
        "",
        "More of the simulated Stripe, for customers whom nobody knows:",
        "",
        f"    {python} -m simulator deliver --story history --shuffle --duplicates 0.2 \\",
        f"        --url {stage.webhook} --secret {stage.secret}",
        "",
        "Ctrl-C ends all of it and leaves nothing behind.",
    )
    narrator.say()
    narrator.say("Look at it", BOLD)
    for line in lines:
        narrator.say(f"    {line}".rstrip())


def _command() -> str:
    """How to call `dues` from where we are."""
    ours = Path(sys.executable).with_name("dues")
    if shutil.which("dues") == str(ours):
        return "dues"
    if not ours.exists():
        return f"{shlex.quote(sys.executable)} -m ops.cli"
    near = os.path.relpath(ours)
    return shlex.quote(str(ours) if near.startswith("..") else near)
