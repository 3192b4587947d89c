"""Practice: a served API and a history that is delivered to a receiver, for people; `python -m simulator serve`."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from simulator.api import KEY
from simulator.calendar import DAY
from simulator.courier import Courier
from simulator.faults import bad_day
from simulator.histories import days
from simulator.people import USERS, people
from simulator.rounds import Plan
from simulator.server import Server, serving
from simulator.state import Stripe
from simulator.stories import STORIES, Step


def practise(options: Mapping[str, Any], out: TextIO, stop: threading.Event) -> int:
    """Serve, deliver, tell; then serve on until `stop` is set. 0 if all that was sent was accepted, else 1.

    `options` has a value for each of `options.OPTIONS`, with `_` for `-`. While it serves on, the account's clock shows
    the time of day, unless it was set.
    """
    began = options["clock"] if options["clock"] is not None else _beginning(options)
    stripe = Stripe(options["seed"], began)
    stripe.twins = options["twins"]
    with serving(stripe, port=options["port"], faults=bad_day(options["seed"], options["bad_day"])) as server:
        practice = _Practice(options, stripe, server, out, began)
        practice.play(stop)
        while not options["once"] and not stop.wait(1):
            practice.go_on()
    return 0 if practice.courier.report.ok else 1


def _beginning(options: Mapping[str, Any]) -> int:
    now = int(time.time())
    return now - options["months"] * 30 * DAY if options["story"] == "history" else STORIES[options["story"]].begin(now)


class _Practice:
    """One run."""

    def __init__(self, options: Mapping[str, Any], stripe: Stripe, server: Server, out: TextIO, began: int) -> None:
        self._options = options
        self._stripe = stripe
        self._server = server
        self._out = out
        self._began = began
        names = ("shuffle", "duplicates", "drops", "stale")
        plan = Plan(seed=options["seed"], **{name: options[name] for name in names})
        self.courier = Courier(stripe, plan, real_time=True)

    def play(self, stop: threading.Event) -> None:
        """The whole story, and what became of it."""
        url, options = self._options["url"], self._options
        self._say(f"API       {self._server.url}  key {KEY}")
        if url:
            payload, version = "thin" if options["thin"] else "snapshot", options["api_version"]
            self._stripe.create_webhook_endpoint(url, secret=options["secret"], payload=payload, api_version=version)
            self._say(f"receiver  {url}  {payload}, {version}")
        for step in self._steps():
            before = self.courier.report.answers.copy()
            self.courier.deliver()
            answers = self.courier.report.answers - before
            self._say(f"{step.title}: {step.sentence} {_counted(answers)}".rstrip())
            if stop.wait(self._options["pace"]):
                return
        self._conclude()

    def go_on(self) -> None:
        """Let the account's clock show the time of day, and deliver what that brings."""
        if self._options["clock"] is None:
            self._stripe.advance(max(self._stripe.now, int(time.time())))
        self.courier.deliver()

    def _steps(self) -> Iterator[Step]:
        if self._options["story"] == "history":
            return self._weeks()
        story = STORIES[self._options["story"]]
        return story.tell(self._stripe, [*self._options["user"], *USERS][: story.users])

    def _weeks(self) -> Iterator[Step]:
        seed, months = self._options["seed"], self._options["months"]
        users = self._options["user"] or people(seed, self._options["customers"])
        told = 0
        for day in days(self._stripe, seed, months, users, restless=self._options["restless"]):
            if day % 7 == 6:
                yield self._week(day // 7 + 1, told)
                told = len(self._stripe.events)
        yield self._week(months * 30 // 7 + 1, told)

    def _week(self, number: int, told: int) -> Step:
        events = self._stripe.events[told:]
        return Step(title=f"Week {number}", sentence=f"{len(events)} events.", events=events, at=self._stripe.now)

    def _conclude(self) -> None:
        report, options = self.courier.report, self._options
        if options["json"]:
            delivery = report.to_json()
            answer = {"ok": report.ok, "api": self._server.url, "key": KEY, "seed": options["seed"]}
            answer |= {"clock": self._began, "events": len(self._stripe.events), "delivery": delivery}
            self._out.write(json.dumps(answer) + "\n")
        elif options["url"]:
            dropped = f", never sent {len(report.dropped)}" if report.dropped else ""
            self._say(
                f"posted {report.posted}, accepted {report.accepted}, given up {len(report.undelivered)}{dropped}"
            )
        if not report.ok:
            self._say(f"This repeats it: --seed {options['seed']} --clock {self._began}")
        if not options["once"]:
            self._say("Serving until Ctrl-C.")
        self._out.flush()

    def _say(self, line: str) -> None:
        if not self._options["json"]:
            self._out.write(line + "\n")
            self._out.flush()


def _counted(answers: Mapping[str, int]) -> str:
    return ", ".join(f"{answer} ×{number}" for answer, number in sorted(answers.items()))
