"""A tiny process that ends an embedded server when the process that started it is gone, however it died.

Run as `python -I -S lifeline.py STARTER_PID SERVER_PID SIGNAL LOCK_FD [FOLDER…]`: the standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SHUTDOWN_SECONDS = 30.0
POLL_SECONDS = 0.05


def children(pid: int) -> list[int]:
    """Process ids of the direct children of `pid`."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)  # macOS
    return [int(child) for child in found.stdout.split()]


def signal_tree(pid: int, number: int) -> None:
    """Send a signal to a server and its children; PostgreSQL's backends are in no process group with it."""

    def send(to: int, what: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(to, what)

    send(pid, signal.SIGSTOP)  # it must not start another child between the listing and the signal
    for child in children(pid):
        send(child, number)
    send(pid, number)


def is_free(lock: int) -> bool:
    """Whether every process that inherited this lock is gone; takes it if so."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_the_end_of(starter: int) -> None:
    """Block until the starter is gone: its pipe closes, or (a fork of it still holds the pipe) we get a new parent."""
    while os.getppid() == starter:
        readable, _, _ = select.select([0], [], [], 0.5)
        if readable and not os.read(0, 1):
            return


def end_server(pid: int, number: int, lock: int) -> None:
    """Shut the server down; kill it if it does not go. The lock tells whether `pid` is still the server's."""
    if is_free(lock):
        return
    signal_tree(pid, signal.SIGCONT)  # a frozen server takes no signal
    os.kill(pid, number)
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    while not is_free(lock):
        if time.monotonic() > deadline:
            signal_tree(pid, signal.SIGKILL)
            return
        time.sleep(POLL_SECONDS)


def main(argv: list[str]) -> None:
    """Wait, end the server, remove what it leaves behind."""
    starter, pid, number, lock, *leftovers = argv
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    wait_for_the_end_of(int(starter))
    with contextlib.suppress(ProcessLookupError):
        end_server(int(pid), int(number), int(lock))
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
