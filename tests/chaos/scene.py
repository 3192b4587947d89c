"""Everything that Dues is made of, as real processes on servers of their own, and the levers to disturb it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import redis
from sqlalchemy import make_url

from ops.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.conftest import migrate, scratch_folder
from tests.support import ROOT, Child, eventually, free_port, running
from tests.workers.world import World, world

SECRET = "whsec_chaos"
CLOCK = ROOT / "tests/chaos/clock"
OLDER = "older worker"
# What is started with `python -m`, and what it says when it works.
PROGRAMS = {
    "receiver": ("ops.cli serve --bind {bind}", "Listening at"),
    "worker": ("tests.chaos.pool", " ready."),
    "beat": ("ops.cli beat", "beat: Starting"),
    "second beat": ("ops.cli beat", "beat: Starting"),
    OLDER: ("ops.cli worker", " ready."),
}


@dataclass
class Scene:
    """A database that is disturbed (`here`), and one that is not (`calm`), both filled with the same events."""

    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    here: World
    calm: World
    folder: Path
    settings: dict[str, str]
    bind: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    children: dict[str, tuple[Child, ExitStack]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.bind}/webhooks/stripe"

    # --- processes ---

    def start(self, name: str, *, code: Path = ROOT) -> None:
        """Start a program and wait until it works; `code` is the checkout that it runs from."""
        arguments, word = PROGRAMS[name]
        stack = ExitStack()
        child = stack.enter_context(
            running(
                [sys.executable, "-m", *arguments.format(bind=self.bind).split()],
                env={**self.settings, "PYTHONPATH": f"{CLOCK}:{code}"},
                cwd=code,
            )
        )
        self.children[name] = (child, stack)
        child.says(word, timeout=60)

    def kill(self, name: str) -> None:
        """End a program and all its processes as `kill -9` does."""
        child, stack = self.children.pop(name)
        with stack:
            whole = psutil.Process(child.pid)
            for process in [whole, *whole.children(recursive=True)]:
                process.kill()

    def drain(self, name: str) -> None:
        """End a program as a deployment does; fails if it does not end well and in time."""
        child, stack = self.children.pop(name)
        with stack:
            child.send(signal.SIGTERM)
            code = child.ends(timeout=60)
            assert code == 0, f"{name} ended with {code} after SIGTERM:\n{child.output[-2000:]}"

    def restart(self, name: str, **settings: str) -> None:
        """Deploy a program anew with some settings changed; an empty one counts as not set."""
        self.drain(name)
        self.settings |= settings
        self.start(name)

    # --- levers ---

    def ticket(self, step: str) -> None:
        """Have the next worker that comes to `step` die there."""
        (self.folder / step).touch()

    def ticket_is_taken(self, step: str) -> None:
        """Wait until that has happened."""
        eventually(lambda: not (self.folder / step).exists(), timeout=60)

    def set_clocks(self, seconds: int) -> None:
        """Put the clocks of all our processes forward or back, not PostgreSQL's."""
        (self.folder / "clock").write_text(str(seconds))

    def flush(self) -> None:
        """Have Valkey forget everything."""
        with contextlib.closing(redis.Redis.from_url(self.valkey.redis_url)) as client:
            client.flushall()

    def sql(self, statement: str) -> None:
        """Do something to the disturbed database that Dues had no part in."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(statement)

    def log(self) -> str:
        """The last words of everybody, and PostgreSQL's."""
        told = {name: child.output for name, (child, _) in self.children.items()}
        told["postgres"] = self.postgres.log.read_text(errors="replace")
        return "\n".join(f"--- {name}\n{text[-3000:]}" for name, text in told.items())


@contextlib.contextmanager
def scene(**settings: str) -> Iterator[Scene]:
    """A scene in which everything runs; `settings` are added to the environment of its processes."""
    folder = Path(tempfile.mkdtemp(prefix="dues-chaos-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        postgres = stack.enter_context(EmbeddedPostgres(_own_folder(stack), port=0))
        valkey = stack.enter_context(EmbeddedValkey(_own_folder(stack), throwaway=True))
        migrate(postgres.url)
        calm = make_url(postgres.url).set(database="calm").render_as_string(hide_password=False)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE calm")
        migrate(calm)
        (folder / "clock").write_text("0")
        one = Scene(
            postgres,
            valkey,
            stack.enter_context(world(postgres.url)),
            stack.enter_context(world(calm)),
            folder,
            {
                "DUES_ENV": "staging",  # in development every process would read the `.env` of this folder
                "DATABASE_URL": postgres.tcp_url,
                "REDIS_URL": valkey.redis_url,
                "STRIPE_WEBHOOK_SECRET": SECRET,
                "CHAOS_TICKETS": str(folder),
                "CHAOS_CLOCK": str(folder / "clock"),
                **settings,
            },
        )
        stack.callback(_end_all, one)
        for name in ("receiver", "worker", "beat"):
            one.start(name)
        yield one


def _own_folder(stack: ExitStack) -> Path:
    """A folder that goes with the scene, though its server writes to the disk as in earnest."""
    folder = scratch_folder()
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _end_all(one: Scene) -> None:
    for name in list(one.children):
        one.kill(name)
