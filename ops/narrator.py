"""Tells what happens to people at a terminal: chapters, and facts under them in two columns."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from ops.console import printable

BOLD, DIM, RED, GREEN, YELLOW, CYAN = 1, 2, 31, 32, 33, 36
# Spaces at which no line is broken: in dates, around arrows, before a count.
UNBROKEN = re.compile(r" (?=[→×])|(?<=→) |(?<=\d) (?=[A-Z][a-z]{2} \d{4})|(?<=[A-Z][a-z]{2}) (?=\d{4})")
NO_BREAK = "\u00a0"
# What begins a line about a row: it is new, has changed, or tells more of the line above.
MARKS = {"+": GREEN, "~": YELLOW, " ": DIM}
INDENT, LABEL = 4, 11
NARROWEST, WIDEST = 60, 120


class Narrator:
    """Writes to `stream`; in colours if that is a terminal and NO_COLOR is not set (https://no-color.org)."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal can write →
        self._stream = stream
        self._in_color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._width = max(NARROWEST, min(shutil.get_terminal_size((100, 24)).columns - 1, WIDEST))

    def say(self, line: str = "", *styles: int) -> None:
        """Write a line as it is."""
        self._write(f"{self._in(line, *styles)}\n")

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say what is being done, and how long it took."""
        began = time.monotonic()
        self._write(f"{' ' * INDENT}{what} … ")
        try:
            yield
        except BaseException:
            self.say("not done", RED)
            raise
        self.say(f"{time.monotonic() - began:.1f} s", DIM)

    def chapter(self, number: int, title: str, when: str, sentence: str) -> None:
        """Begin a chapter: what happened, and when."""
        self._write(f"\n{self._in(f'{number:2}', CYAN)}  {self._in(title, BOLD)}{self._in(f' · {when}', DIM)}\n")
        self._write(f"{self._wrapped(sentence, ' ' * INDENT)}\n")

    def fact(self, label: str, text: str, *styles: int) -> None:
        """Write what is to be said under a label, which stands at the left."""
        head = f"{' ' * INDENT}{self._in(f'{label:{LABEL}}', DIM)}"
        self._write(f"{head}{self._in(self._wrapped(text, ' ' * (INDENT + LABEL)).lstrip(), *styles)}\n")

    def row(self, label: str, mark: str, text: str, *styles: int) -> None:
        """Write about a row, behind one of the `MARKS`."""
        wrapped = self._wrapped(text, " " * (INDENT + LABEL + 2)).lstrip()
        head = f"{' ' * INDENT}{self._in(f'{label:{LABEL}}', DIM)}{self._in(mark, MARKS[mark])}"
        self._write(f"{head} {self._in(wrapped, *styles)}\n")

    def table(self, rows: Sequence[Sequence[str]], heads: Sequence[str]) -> None:
        """Write rows in columns."""
        widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
        for row in [heads, *rows]:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.say(" " * INDENT + line.rstrip(), *([DIM] if row is heads else []))

    def _wrapped(self, text: str, indent: str) -> str:
        filled = textwrap.fill(
            UNBROKEN.sub(NO_BREAK, printable(text)),
            self._width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return filled.replace(NO_BREAK, " ")

    def _in(self, text: str, *styles: int) -> str:
        if not (self._in_color and styles and text):
            return text
        return f"\x1b[{';'.join(map(str, styles))}m{text}\x1b[0m"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
