"""Which programs make up a worker, a beat and a receiver."""

from __future__ import annotations

from collections.abc import Sequence

from ops.supervise import Program

LANES = ("live", "bulk", "api")
QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


def receiver(bind: str) -> list[Program]:
    """The receiver, listening on host:port."""
    return [Program("receiver", "ops.cli", ["serve", "--bind", bind])]


def worker(lanes: Sequence[str], processes: int) -> list[Program]:
    """Programs of a worker that serves `lanes` (none given: all) with some processes, and a sweeper beside them.

    A worker for all lanes keeps one of several processes for `live`, so that no backlog delays what happens now.
    """
    serves = tuple(lanes) or LANES
    queues = [serves] * processes
    if set(serves) == set(LANES) and processes > 1:
        queues[0] = ("live",)
    programs = [_celery_worker(number, names) for number, names in enumerate(queues, start=1)]
    return [*programs, Program("sweeper", "ops.sweeper", list(serves))]


def _celery_worker(number: int, queues: Sequence[str]) -> Program:
    name = f"worker-{number}"
    options = ["-P", "solo", *QUIET, "-l", "INFO", "-n", f"{name}@%h", "-Q", ",".join(queues)]
    return Program(name, "ops.celery_command", ["-q", "worker", *options])


def beat() -> list[Program]:
    """Celery's beat, with its schedule in memory: it needs no file, and where a task stands the database knows."""
    options = ["--scheduler", "celery.beat:Scheduler", "--pidfile", "", "-l", "INFO"]
    return [Program("beat", "ops.celery_command", ["-q", "beat", *options])]
