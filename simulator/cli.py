"""The command line: `python -m simulator`."""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from simulator.delivery import Plan, deliver
from simulator.histories import CLOCK, history
from simulator.objects import Event
from simulator.options import OPTIONS, Option, user
from simulator.people import USERS
from simulator.practice import practise
from simulator.render import render_event
from simulator.state import Stripe
from simulator.stories import STORIES, Step
from simulator.versions import ENDIVE, VERSIONS

EXAMPLE = """examples:
  python -m simulator deliver --url http://127.0.0.1:8000/webhooks/stripe --secret whsec_practice --story membership
  python -m simulator deliver --url http://127.0.0.1:8000/webhooks/stripe --secret whsec_practice --story history \\
      --seed 7 --customers 20 --months 6 --shuffle --duplicates 0.2 --json
  python -m simulator serve --url http://127.0.0.1:8000/webhooks/stripe --customers 20 --bad-day 0.1
  python -m simulator print --story membership --api-version 2025-02-24.acacia | head -3
"""


def main(arguments: Sequence[str] | None = None, out: TextIO = sys.stdout) -> int:
    """Run a command; 0 if all events were accepted, 1 if some were not, 2 for a mistake on the command line."""
    options = _parser().parse_args(arguments)
    if options.command == "serve":
        return _serve(options, out)
    options.api_version = options.api_version or [ENDIVE]
    if options.command == "print":
        version = options.api_version[0]
        out.writelines(f"{json.dumps(render_event(e, version), ensure_ascii=False)}\n" for e in _events(options))
        return 0
    return _deliver(options, out)


def _serve(options: argparse.Namespace, out: TextIO) -> int:
    try:
        return practise(vars(options), out, threading.Event())
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError) as error:  # a port that is taken, a URL that is none
        sys.stderr.write(f"{error}\n")
        return 2


def _deliver(options: argparse.Namespace, out: TextIO) -> int:
    plan = Plan(
        seed=options.seed,
        shuffle=options.shuffle,
        duplicates=options.duplicates,
        api_versions=options.api_version,
        attempts=options.attempts,
    )
    if options.json or options.shuffle:
        # A shuffled story cannot be told step by step.
        reports = [deliver(list(_events(options)), options.url, options.secret, plan)]
    else:
        reports = []
        for step in _steps(options):
            out.write(f"{step.title}: {step.sentence}\n")
            reports.append(deliver(step.events, options.url, options.secret, plan))
            out.write(f"  {len(step.events)} events, answers {dict(reports[-1].answers)}\n")
    if options.json:
        out.write(json.dumps(reports[0].to_json()) + "\n")
    else:
        posted, accepted = sum(r.posted for r in reports), sum(r.accepted for r in reports)
        out.write(f"posted {posted}, accepted {accepted}\n")
        out.writelines(f"given up: {id}\n" for report in reports for id in report.undelivered)
    return 0 if all(report.ok for report in reports) else 1


def _events(options: argparse.Namespace) -> Iterator[Event]:
    for step in _steps(options):
        yield from step.events


def _steps(options: argparse.Namespace) -> Iterator[Step]:
    if options.story == "history":
        clock = CLOCK if options.clock is None else options.clock
        stripe = history(
            options.seed, options.customers, options.months, clock=clock, burst=not options.spread, users=options.user
        )
        sentence = f"{options.months} months of {options.customers} customers."
        yield Step(title="History", sentence=sentence, events=stripe.events, at=stripe.now)
        return
    story = STORIES[options.story]
    clock = story.begin(int(time.time())) if options.clock is None else options.clock
    stripe = Stripe(options.seed, clock, burst=not options.spread)
    yield from story.tell(stripe, [*(options.user or []), *USERS][: story.users])


def _read(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same reader, whose complaint is shown."""

    def reader(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return reader


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    if option.read is None:
        parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        return
    shown = f" (default {option.default})" if option.default is not None else ""
    parser.add_argument(
        f"--{option.name}",
        action="append" if option.many else "store",
        type=_read(option.read),
        default=[] if option.many else option.default,
        choices=option.choices,
        metavar=option.metavar,
        help=option.help + shown,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulator",
        description="A Stripe to practise on: true histories, delivered as signed webhooks or printed.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="serve | deliver | print")
    told = argparse.ArgumentParser(add_help=False)
    told.add_argument("--story", choices=[*STORIES, "history"], default="membership", help="what happens")
    told.add_argument("--seed", type=int, default=1, help="equal seeds and clocks give equal events (default 1)")
    told.add_argument("--clock", type=int, metavar="UNIX_S", help="when it begins (default: so that a story ends now)")
    told.add_argument("--customers", type=int, default=3, help="of a history (default 3)")
    told.add_argument("--months", type=int, default=3, help="of a history (default 3)")
    told.add_argument(
        "--user",
        action="append",
        type=_read(user),
        metavar="ID=EMAIL",
        help="who they are at the merchant's; repeat it",
    )
    told.add_argument("--spread", action="store_true", help="a second for every event, instead of same-second bursts")
    told.add_argument(
        "--api-version",
        action="append",
        choices=VERSIONS,
        help=f"the endpoint's (default {ENDIVE}); given twice, each delivery takes one at random",
    )
    commands.add_parser("print", parents=[told], help="write the events as JSON lines")
    posting = commands.add_parser("deliver", parents=[told], help="post the events, signed, to a webhook endpoint")
    posting.add_argument("--url", required=True, help="the endpoint, such as http://127.0.0.1:8000/webhooks/stripe")
    posting.add_argument("--secret", required=True, action="append", help="whsec_…; several while one is rolled")
    posting.add_argument("--shuffle", action="store_true", help="deliver in an order drawn from the seed")
    posting.add_argument("--duplicates", type=float, default=0.0, help="share of events sent twice, such as 0.2")
    posting.add_argument("--attempts", type=int, default=5, help="tries per event (default 5)")
    posting.add_argument("--json", action="store_true", help="one report as JSON")
    practice = commands.add_parser("serve", help="serve the API, and deliver a history to a receiver")
    for option in OPTIONS:
        _add(practice, option)
    for command in commands.choices.values():
        command.epilog, command.formatter_class = EXAMPLE, argparse.RawDescriptionHelpFormatter
    return parser
