"""Whatever was drawn from a seed can be had again; who meets a failure needs to know which seed that was."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def repeatable(**seeds: object) -> Iterator[None]:
    """Add to any exception of the block what repeats it, as `repeatable(seed=7)`: a note beneath its traceback."""
    try:
        yield
    except Exception as error:
        error.add_note("This repeats it: " + ", ".join(f"{name}={value!r}" for name, value in seeds.items()))
        raise
