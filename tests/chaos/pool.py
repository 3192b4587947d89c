"""`dues worker` with all that belongs to it, made of workers that can be told to die: see `mortal`."""

from __future__ import annotations

import dataclasses

from ops import logs, processes, supervise

if __name__ == "__main__":
    logs.to_stderr()
    supervise.Supervisor(
        [
            dataclasses.replace(program, module="tests.chaos.mortal")
            if program.module == "ops.celery_command"
            else program
            for program in processes.worker((), 2)
        ]
    ).run()
