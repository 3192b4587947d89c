"""The `dues` command: finds the files of `ops/commands/` and loads each when it is asked for."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, MutableMapping

import click

from ops import commands, console, failures


class Commands(MutableMapping[str, click.Command]):
    """Every command by its name; a file of `ops/commands/` is imported when somebody asks for its command."""

    def __init__(self) -> None:
        self._files = {
            module.name.replace("_", "-"): f"{commands.__name__}.{module.name}"
            for module in pkgutil.iter_modules(commands.__path__)
        }
        self._added: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._added:
            self._added[name] = importlib.import_module(self._files[name]).command
        return self._added[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._added[name] = command

    def __delitem__(self, name: str) -> None:
        del self._added[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._files, *self._added}))

    def __len__(self) -> int:
        return len({*self._files, *self._added})


class Dues(click.Group):
    """A group in which every failure ends as one sentence and exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was asked for."""
        with failures.in_one_sentence(traceback=bool(ctx.params.get("traceback"))):
            return super().invoke(ctx)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"dues {console.version()}")
        ctx.exit()


@click.group(
    cls=Dues,
    commands=Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: dues demo. Every command shows its own: dues db --help. "
    "Exit codes: 0 all is well, 1 something was found, 2 it failed.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show it.")
@click.option("--traceback", is_flag=True, expose_value=True, help="On failure show where in the code it happened.")
def main(*, traceback: bool) -> None:  # noqa: ARG001 - Dues.invoke looks at it
    """Keep a membership site's database in step with Stripe."""
    console.load_environment()


if __name__ == "__main__":
    main(prog_name="dues")
