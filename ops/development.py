"""`dues dev`: embedded servers in `.dues/` and every process of Dues, in one terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from models.database import connect
from models.settings import DEVELOPMENT_SECRET, read_settings
from ops import console, migrating, processes
from ops.embedded import EmbeddedPostgres, EmbeddedValkey, free_port
from ops.failures import Failed
from ops.supervise import Program, Supervisor

DRAIN_SECONDS = 10.0
READY_SECONDS = 60.0
RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN = range(31, 37)
COLORS = {"receiver": CYAN, "worker": GREEN, "sweeper": YELLOW, "beat": MAGENTA, "dues": BLUE}


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where everything is written, each line with the name of who wrote it; in colours if somebody looks."""

    in_color: bool
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, name: str, line: str) -> None:
        """Write one line, unless it is empty."""
        if not line.strip():
            return
        head = f"{name:8} │"
        if self.in_color:
            head = f"\x1b[{COLORS.get(name.partition('-')[0], RED)}m{head}\x1b[0m"
        with self._lock, contextlib.suppress(OSError):  # the terminal may be gone while we are ending
            sys.stdout.write(f"{head} {console.printable(line)}\n")
            sys.stdout.flush()


class _Handler(logging.Handler):
    """Sends what this process logs to the terminal, as lines of `dues`."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.write("dues", self.format(record))


def run(bind: str, workers: int) -> None:
    """Run everything until Ctrl-C or SIGTERM. Raises Failed, for one if it runs in this folder already."""
    _refuse_other_places(bind)
    terminal = Terminal(sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    logging.basicConfig(level=logging.INFO, handlers=[_Handler(terminal)], format="%(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        _make_state_folder()
        if not stack.enter_context(console.only_development_here()):
            raise Failed(f"`dues dev` is already running in this folder (process {console.development_pid()}).")
        console.require_free(bind)
        environment = {**_defaults(), **stack.enter_context(_servers(terminal))}
        _migrate({**os.environ, **environment}, terminal)
        stack.enter_context(_announced(environment))
        threading.Thread(target=_greet, args=(bind, environment, terminal), daemon=True).start()
        Supervisor(_programs(bind, workers, environment), drain=DRAIN_SECONDS, output=terminal.write).run()
        terminal.write("dues", "stopping the servers; their data stay in .dues/")


def _refuse_other_places(bind: str) -> None:
    if read_settings(os.environ).env != "development":
        raise Failed("`dues dev` is for development: elsewhere run `dues serve`, `dues worker` and `dues beat`.")
    if bind.startswith("unix:"):
        raise Failed("`dues dev` listens on host:port only.")


def _make_state_folder() -> None:
    # PostgreSQL, which another account runs for root, passes through.
    console.STATE.mkdir(mode=0o711, exist_ok=True)
    (console.STATE / ".gitignore").write_text("*\n")


def _defaults() -> dict[str, str]:
    """What development sets where the environment does not."""
    given = os.environ.get("STRIPE_WEBHOOK_SECRET") or os.environ.get("STRIPE_WEBHOOK_SECRET_FILE")
    return {} if given else {"STRIPE_WEBHOOK_SECRET": DEVELOPMENT_SECRET}


@contextlib.contextmanager
def _servers(terminal: Terminal) -> Iterator[dict[str, str]]:
    """Settings that lead to the servers started here: those that the environment does not name."""
    with contextlib.ExitStack() as stack:
        found = {}
        if not console.is_set("DATABASE_URL"):
            terminal.write("dues", "starting PostgreSQL in .dues/postgres")
            postgres = EmbeddedPostgres(console.STATE / "postgres", port=_port("postgres"))
            found["DATABASE_URL"] = stack.enter_context(postgres).tcp_url
        if not console.is_set("REDIS_URL"):
            terminal.write("dues", "starting Valkey in .dues/valkey")
            valkey = EmbeddedValkey(console.STATE / "valkey", port=_port("valkey"))
            found["REDIS_URL"] = stack.enter_context(valkey).redis_url
        yield found


def _port(server: str) -> int:
    """The port that the server had the last time, so that a front end need not be told anew; else a free one."""
    file = console.STATE / f"{server}.port"
    with contextlib.suppress(FileNotFoundError, ValueError, Failed):
        port = int(file.read_text())
        console.require_free(f"127.0.0.1:{port}")
        return port
    port = free_port()
    file.write_text(f"{port}\n")
    return port


def _migrate(environ: Mapping[str, str], terminal: Terminal) -> None:
    engine = connect(read_settings(environ), application="migrate")
    try:
        for step in migrating.upgrade(engine).steps:
            terminal.write("dues", f"applied migration {step}")
    finally:
        engine.dispose()


@contextlib.contextmanager
def _announced(environment: Mapping[str, str]) -> Iterator[None]:
    """Leave word for the other commands in this folder, for as long as we run."""
    console.RUNNING.unlink(missing_ok=True)
    fd = os.open(console.RUNNING, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, for its mode
        file.writelines(f"{name}='{value}'\n" for name, value in environment.items())
    try:
        yield
    finally:
        console.RUNNING.unlink(missing_ok=True)


def _programs(bind: str, workers: int, environment: Mapping[str, str]) -> list[Program]:
    programs = [*processes.receiver(bind), *processes.worker((), workers), *processes.beat()]
    return [Program(one.name, one.module, one.arguments, environment) for one in programs]


def _greet(bind: str, environment: Mapping[str, str], terminal: Terminal) -> None:
    webhook = f"http://{bind}/webhooks/stripe"
    if not _answers(f"http://{bind}/readyz"):
        terminal.write(
            "dues", f"the receiver does not answer at {bind} after {READY_SECONDS:.0f} s; see its lines above"
        )
        return
    secret = environment.get("STRIPE_WEBHOOK_SECRET", "as STRIPE_WEBHOOK_SECRET says")
    for line in (
        "ready",
        f"  webhooks   {webhook}",
        f"  secret     {secret}",
        f"  database   {environment.get('DATABASE_URL', 'as DATABASE_URL says')}",
        f"  redis      {environment.get('REDIS_URL', 'as REDIS_URL says')}",
        f"  from Stripe: stripe listen --forward-to {bind}/webhooks/stripe",
        "    with its own secret: STRIPE_WEBHOOK_SECRET=$(stripe listen --print-secret) dues dev",
        "  look: dues events list, dues users show EMAIL (in this folder, in another terminal)",
        "  Ctrl-C ends all of it",
    ):
        terminal.write("dues", line)


def _answers(url: str) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - http:// it is
            return bool(answer.status == 200)
        time.sleep(0.2)
    return False
