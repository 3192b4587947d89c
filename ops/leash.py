"""Runs a module that ends when the process that started it is gone, however that one died.

`python leash.py FD SECONDS MODULE [ARGUMENT…]`, as the leader of a process group. FD is the reading end of a pipe whose
writing end only the starter has. Its end of file is followed by SIGTERM to our process group and, if we are still there
after SECONDS, by SIGKILL to it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

ROOT = str(Path(__file__).parent.parent)


def watch(pipe: int, seconds: float) -> None:
    """Wait for the end of the starter, then end."""
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(seconds)
    os.killpg(0, signal.SIGKILL)


def main(argv: list[str]) -> None:
    """Take the leash and become the module."""
    pipe, seconds, module, *arguments = argv
    os.set_inheritable(int(pipe), False)  # noqa: FBT003 - it takes no keyword
    threading.Thread(target=watch, args=(int(pipe), float(seconds)), name="leash", daemon=True).start()
    # Started with -P, so that nothing in the current folder can pass for a module of ours; a checkout that is not
    # installed is found so.
    if ROOT not in sys.path:
        sys.path.append(ROOT)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
