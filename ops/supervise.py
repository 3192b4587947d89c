"""Keeps child processes running, and takes them along when it ends itself, however it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ops import leash

logger = logging.getLogger(__name__)

# A child that lived so long has started well; one that did not waits longer and longer before it is started again.
HEALTHY_SECONDS = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
# Below the 30 seconds that container engines commonly grant.
DRAIN_SECONDS = 25.0
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Program:
    """A module of Python's to run as `python -m module arguments…`; `env` adds to our environment."""

    name: str
    module: str
    arguments: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


Output = Callable[[str, str], None]
"""Takes the name of a program and a line that it wrote."""


class Supervisor:
    """Starts programs, starts again what ends by itself, and drains and ends all of them on SIGTERM or Ctrl-C.

    Children are in process groups of their own, so that Ctrl-C reaches only the supervisor, and on a leash, so that
    they end too if it is killed. `output` gets what they write; without it they write where the supervisor does.
    `drain` (seconds) is how long they may take to end before they are killed; a second signal kills at once.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        drain: float = DRAIN_SECONDS,
        output: Output | None = None,
    ) -> None:
        self._leash, self._hand = os.pipe()
        self._children = [_Child(program, self._leash, drain, output) for program in programs]
        self._drain = drain
        self._stops = 0
        self._waker, self._wakes = socket.socketpair()

    def run(self) -> None:
        """Supervise until a signal says stop. Main thread only; not to be run twice."""
        with self._signals():
            try:
                while not self._stops:
                    for child in self._children:
                        child.tend()
                    self._wait(min(child.seconds_to_start for child in self._children))
                self._end()
            finally:
                for child in self._children:
                    child.kill()
        os.close(self._hand)
        os.close(self._leash)

    def stop(self) -> None:
        """End as after a signal; from any thread, and before `run` too."""
        self._stop()
        with contextlib.suppress(OSError):  # nobody sleeps who would have to be woken
            self._waker.send(b"\0")

    @property
    def is_stopping(self) -> bool:
        """Whether it has been told to stop."""
        return self._stops > 0

    def _end(self) -> None:
        logger.info("stopping; up to %.0f s for what is under way", self._drain)
        deadline = time.monotonic() + self._drain
        for child in self._children:
            child.terminate()
        while self._stops < 2 and any(child.is_running for child in self._children):
            if time.monotonic() >= deadline:
                running = ", ".join(child.program.name for child in self._children if child.is_running)
                logger.error("killed because %.0f s were not enough: %s", self._drain, running)
                return
            self._wait(deadline - time.monotonic())

    # --- signals ---

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        self._waker.settimeout(0)
        self._wakes.settimeout(0)
        # Under nohup a SIGHUP means nothing. Shells that start something with & have it ignore Ctrl-C; we don't.
        stops = [number for number in STOPS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._stop) for number in stops}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        waker_before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._waker.close()
            self._wakes.close()

    def _stop(self, *_: object) -> None:
        self._stops += 1

    def _wait(self, seconds: float) -> None:
        """Sleep until a signal comes, the end of a child among them."""
        readable, _, _ = select.select([self._wakes], [], [], max(0.0, min(seconds, 3600.0)))
        if readable:
            self._wakes.recv(4096)


class _Child:
    """One program and the process that runs it now."""

    def __init__(self, program: Program, pipe: int, drain: float, output: Output | None) -> None:
        self.program = program
        self._pipe = pipe
        self._drain = drain
        self._output = output
        self._process: subprocess.Popen[str] | None = None
        self._started = 0.0
        self._due = 0.0
        self._short_lives = 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def seconds_to_start(self) -> float:
        """Seconds until the next start; infinite while it runs."""
        return float("inf") if self._process else max(0.0, self._due - time.monotonic())

    def tend(self) -> None:
        """Notice that the process has ended; start it when that is due."""
        if self._process is not None and not self.is_running:
            self._ended(self._process)
        if self._process is None and time.monotonic() >= self._due:
            self._start()

    def terminate(self) -> None:
        if self._process is not None and self.is_running:
            self._process.terminate()

    def kill(self) -> None:
        """Kill the process with whatever it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        command = [sys.executable, "-P", leash.__file__, str(self._pipe), str(self._drain), self.program.module]
        self._process = subprocess.Popen(
            [*command, *self.program.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._output else None,
            stderr=subprocess.STDOUT if self._output else None,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.program.env},
            pass_fds=(self._pipe,),
            process_group=0,
            encoding="utf-8",
            errors="replace",
        )
        self._started = time.monotonic()
        if self._output:
            threading.Thread(target=self._pump, args=(self._process, self._output), daemon=True).start()

    def _pump(self, process: subprocess.Popen[str], output: Output) -> None:
        if process.stdout is not None:
            for line in process.stdout:
                output(self.program.name, line.rstrip("\n"))

    def _ended(self, process: subprocess.Popen[str]) -> None:
        lived = time.monotonic() - self._started
        self.kill()  # what it started must not stay behind
        self._short_lives = 0 if lived >= HEALTHY_SECONDS else self._short_lives + 1
        delay = delay_after(self._short_lives)
        self._due = time.monotonic() + delay
        logger.error(
            "%s (process %d) ended by itself after %.1f s with %s; starting it again in %.1f s",
            self.program.name,
            process.pid,
            lived,
            _how(process.returncode),
            delay,
        )


def delay_after(short_lives: int) -> float:
    """Seconds to wait after so many short lives in a row; of several children not all start at once."""
    if not short_lives:
        return 0.0
    # Bounded before it is an exponent: after some hours 2 ** n would be no float any more.
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(short_lives - 1, 10)) * random.uniform(0.5, 1.0)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
