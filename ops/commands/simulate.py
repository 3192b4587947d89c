"""`dues simulate`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import click

from ops import console
from ops.failures import Failed
from simulator.options import OPTIONS, Option

# What is practised on is the receiver of `dues dev`, and what it expects is in its settings.
DEFAULTS = {"url": "http://127.0.0.1:8000/webhooks/stripe", "secret": None}


class Read(click.ParamType[Any]):
    """What an option's own reader makes of the text."""

    def __init__(self, option: Option, read: Callable[[str], Any]) -> None:
        self.name = option.metavar or "text"
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it, or end with a usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _offered(option: Option) -> click.Option:
    if option.read is None:
        return click.Option([f"--{option.name}"], is_flag=True, help=option.help)
    default = DEFAULTS.get(option.name, option.default)
    return click.Option(
        [f"--{option.name}"],
        type=click.Choice(option.choices) if option.choices else Read(option, option.read),
        default=default,
        show_default=default is not None,
        multiple=option.many,
        metavar=option.metavar,
        help=option.help,
    )


@click.command(
    epilog="Example: dues simulate --customers 20 --restless --duplicates 0.2 --shuffle",
    params=[_offered(option) for option in OPTIONS if option.name != "json"],
)
@console.as_json
def command(*, as_json: bool, secret: str | None, **options: Any) -> None:
    """Practise on a simulated Stripe.

    It serves Stripe's API on loopback, and delivers what happened to some made-up customers to the receiver of
    `dues dev`, signed with STRIPE_WEBHOOK_SECRET. Workers ask it if STRIPE_API_BASE and STRIPE_API_KEY say so. Ctrl-C
    ends it. Exit 1 if the receiver did not accept everything; then the seed that repeats it is shown.
    """
    from simulator.practice import practise

    settings = console.settings()
    if settings.env == "production":
        raise Failed("`dues simulate` refuses in production (DUES_ENV): what it delivers never happened.")
    secret = secret or next(iter(settings.stripe_webhook_secrets), None)
    if secret is None:
        raise Failed("Say with --secret, or in STRIPE_WEBHOOK_SECRET, what the receiver expects to be signed with.")
    if options["port"]:
        console.require_free(f"127.0.0.1:{options['port']}")
    wish = {**options, "secret": secret, "json": as_json}
    try:
        status = practise(wish, sys.stdout, threading.Event())
    except KeyboardInterrupt:
        return
    except ValueError as error:
        raise Failed(f"{error}.") from None
    if status:
        raise click.exceptions.Exit(status)
