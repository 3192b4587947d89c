"""Runs `dues` inside the test process, in an environment and a folder that belong to the test."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from ops.cli import main

OURS = ("DUES_", "STRIPE_", "DATABASE_URL", "REDIS_URL")


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Dues:
    """The `dues` command with an environment: none of our settings but those given."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)

    def __call__(self, *arguments: str, stdin: str = "", **more: str) -> Answer:
        with _place(self.folder, {**self.environment, **more}):
            result = CliRunner().invoke(main, arguments, input=stdin, prog_name="dues")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    def fine(self, *arguments: str, **more: str) -> Answer:
        """Run a command that must end with 0."""
        answer = self(*arguments, **more)
        assert answer.code == 0, answer
        return answer


@contextlib.contextmanager
def _place(folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    try:
        for name in [name for name in os.environ if name.startswith(OURS)]:
            del os.environ[name]
        os.environ.update(environment)
        with contextlib.chdir(folder):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
