"""What many tests need: polling with a deadline, children that never outlive their test, a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ops.embedded import free_port

__all__ = ["ROOT", "Child", "eventually", "free_port", "running"]

ROOT = Path(__file__).parents[1]
T = TypeVar("T")


def eventually(check: Callable[[], T], *, timeout: float = 10.0, every: float = 0.02) -> T:
    """The first true answer of `check`, asked again until `timeout` (seconds); its assertions count as "not yet"."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            answer = check()
            if answer:
                return answer
            problem = f"the last answer was {answer!r}"
        except AssertionError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {problem}")
        time.sleep(every)


@dataclass(frozen=True)
class Child:
    """A process started by a test, with all it has written to stdout and stderr so far."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, text: str, *, timeout: float = 15.0) -> str:
        """Wait until the child has written `text`; the whole output. Fails at once if the child ends without it."""

        def said_or_ended() -> bool:
            return self.process.poll() is not None or text in self.output

        eventually(said_or_ended, timeout=timeout)
        assert text in self.output, f"ended with {self.process.returncode} without saying {text!r}:\n{self.output}"
        return self.output

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the child alone."""
        self.process.send_signal(number)

    def ends(self, *, timeout: float = 15.0) -> int:
        """Wait for the end of the child; its exit code, negative for a signal."""
        return self.process.wait(timeout)


@contextlib.contextmanager
def running(
    arguments: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT, user: str | None = None
) -> Iterator[Child]:
    """A child in a session of its own; it and its process group are killed at the end. `env` adds to ours."""
    with tempfile.NamedTemporaryFile(prefix="dues-test-", suffix=".log") as log:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            start_new_session=True,
            user=user,
            extra_groups=[] if user else None,
        )
        try:
            yield Child(process, Path(log.name))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
