"""`python -m simulator serve`: an API to ask and a receiver that is told, until somebody stops it."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe as library

from simulator.api import KEY
from simulator.calendar import DAY
from simulator.cli import main
from simulator.options import NAMES, OPTIONS, SECRET, share, user
from simulator.practice import practise
from simulator.stories import STORIES
from simulator.versions import ACACIA
from tests.simulator.test_delivery import SECRET as ENDPOINTS_SECRET
from tests.simulator.test_delivery import Endpoint, always_200
from tests.support import free_port

CLOCK = "1793520000"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint(always_200)
    yield endpoint
    endpoint.stop()


def serve(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    return main(["serve", "--once", "--port", "0", *arguments], out), out.getvalue()


def wish(**options: Any) -> dict[str, Any]:
    """What a command line without options would say, but for these."""
    plain = {option.name.replace("-", "_"): [] if option.many else option.default for option in OPTIONS}
    return {**{name: False if value is None else value for name, value in plain.items()}, "clock": None, **options}


def test_a_history_is_delivered_week_by_week_and_told(endpoint: Endpoint) -> None:
    status, told = serve("--url", endpoint.url, "--months", "1", "--seed", "4")
    assert status == 0
    weeks = [line for line in told.splitlines() if line.startswith("Week")]
    assert len(weeks) == 5
    assert sum(int(week.split()[2]) for week in weeks) == len(endpoint.accepted)
    assert told.endswith(f"posted {len(endpoint.accepted)}, accepted {len(endpoint.accepted)}, given up 0\n")
    last = max(event["created"] for event in endpoint.accepted)
    assert time.time() - 30 * DAY < last <= time.time()


def test_a_story_may_be_told_in_another_version_or_thin(endpoint: Endpoint) -> None:
    _, told = serve(
        "--url", endpoint.url, "--story", "membership", "--api-version", ACACIA, "--user", "u1=me@a.example"
    )
    assert "A payment fails: " in told
    assert {event["api_version"] for event in endpoint.accepted} == {ACACIA}
    customers = [e["data"]["object"] for e in endpoint.accepted if e["type"] == "customer.created"]
    assert "me@a.example" in [customer["email"] for customer in customers]
    endpoint.accepted.clear()
    serve("--url", endpoint.url, "--thin", "--months", "1")
    assert {event["object"] for event in endpoint.accepted} == {"v2.core.event"}


def test_misbehaviour_is_reported_as_json_with_the_seed(endpoint: Endpoint) -> None:
    wanted = ("--months", "1", "--seed", "4", "--clock", CLOCK, "--restless")
    plan = ("--drops", "0.2", "--duplicates", "0.3", "--stale", "0.1", "--shuffle", "--twins", "0.2")
    status, told = serve("--url", endpoint.url, "--json", *wanted, *plan)
    report = json.loads(told)
    delivery = report["delivery"]
    assert (status, report["ok"], report["seed"], report["clock"]) == (0, True, 4, int(CLOCK))
    assert delivery["answers"]["400"] > 0
    arrived = [event["id"] for event in endpoint.accepted]
    assert len(set(arrived)) == report["events"] - len(set(delivery["dropped"])) < len(arrived)
    endpoint.accepted.clear()
    again = json.loads(serve("--url", endpoint.url, "--json", *wanted, *plan)[1])
    assert again["delivery"]["dropped"] == delivery["dropped"]


def test_what_was_not_accepted_ends_with_1_and_says_how_to_repeat_it() -> None:
    status, told = serve("--url", "http://127.0.0.1:9/", "--months", "0", "--clock", CLOCK, "--seed", "7")
    assert status == 1
    assert "ConnectionRefusedError ×" in told
    assert told.endswith(f"This repeats it: --seed 7 --clock {CLOCK}\n")


@contextlib.contextmanager
def practising(**options: Any) -> Iterator[library.StripeClient]:
    """A client of a practice that serves on, and is stopped at the end."""
    out, stop, port = io.StringIO(), threading.Event(), free_port()
    practice = threading.Thread(target=practise, args=(wish(port=port, **options), out, stop))
    practice.start()
    try:
        while "Serving until Ctrl-C." not in out.getvalue():
            assert practice.is_alive()
            time.sleep(0.02)
        yield library.StripeClient(KEY, base_addresses={"api": f"http://127.0.0.1:{port}"})
    finally:
        stop.set()
        practice.join(10)


def test_it_serves_on_and_lives_on_until_it_is_stopped(endpoint: Endpoint) -> None:
    with practising(url=endpoint.url, months=1, seed=4) as client:
        (found,) = client.v1.webhook_endpoints.list()
        assert found.url == endpoint.url
        newest = client.v1.events.list().data[0]
        assert newest.pending_webhooks == 0
        assert newest.id in {event["id"] for event in endpoint.accepted}
        made = client.v1.webhook_endpoints.create({"url": endpoint.url, "enabled_events": ["*"]})
        assert abs(made.created - time.time()) < 60
    with pytest.raises(library.APIConnectionError):
        client.v1.products.list()


def test_a_clock_that_was_set_stands_still_while_it_serves_on() -> None:
    with practising(clock=int(CLOCK), months=1) as client:
        time.sleep(1.2)
        made = client.v1.webhook_endpoints.create({"url": "https://example.com", "enabled_events": ["*"]})
        assert made.created == int(CLOCK) + 30 * DAY


def test_the_api_of_a_bad_day_goes_wrong_now_and_then() -> None:
    with practising(months=1, bad_day=1.0) as client:
        outcomes = []
        for _ in range(20):
            try:
                client.v1.products.list()
                outcomes.append("fine")
            except library.StripeError as error:
                outcomes.append(type(error).__name__)
    assert {"RateLimitError", "APIError", "APIConnectionError"} <= set(outcomes)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--drops", "2"], "expected a share from 0 to 1, got '2'"),
        (["--user", "me"], "expected ID=EMAIL, got 'me'"),
        (["--story", "none"], "invalid choice: 'none'"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        serve(*arguments)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_url_that_is_none_end_with_2(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    port = endpoint.url.rpartition(":")[2].partition("/")[0]
    assert main(["serve", "--once", "--port", port, "--months", "0"], io.StringIO()) == 2
    assert "in use" in capsys.readouterr().err
    assert serve("--url", "ftp://example.com", "--months", "0")[0] == 2
    assert "cannot post to 'ftp://example.com'" in capsys.readouterr().err


def test_options_are_read_or_refused() -> None:
    assert (user("u1=a@b.c").email, share("0.5")) == ("a@b.c", 0.5)
    assert set(NAMES) == {*STORIES, "history"}
    assert SECRET == ENDPOINTS_SECRET
