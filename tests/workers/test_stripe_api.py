from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from models.settings import read_settings
from ops.embedded import EmbeddedValkey
from simulator.api import KEY as PRACTICE_KEY
from simulator.server import serving
from simulator.state import Stripe
from tests.support import free_port
from tests.workers.scripted import KEY, Said, Scripted, page, refusal, scripted
from workers import stripe_api
from workers.budget import Budget
from workers.stripe_api import (
    Breaker,
    InvalidIdError,
    NotFoundError,
    RefusedError,
    RejectedError,
    StripeApi,
    StripeApiError,
    StripeAwayError,
)

NOON = 1_790_000_000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be waited at random is not waited; what Stripe asks for is."""
    monkeypatch.setattr(stripe_api, "_backoff", lambda _: 0.01)


@contextlib.contextmanager
def door(
    *answers: Said, attempts: int = 5, seconds: float = 8.0, **settings: str
) -> Iterator[tuple[StripeApi, Scripted]]:
    with scripted(*answers) as stripe:
        api = StripeApi(stripe.settings(**settings), attempts=attempts, seconds=seconds)
        try:
            yield api, stripe
        finally:
            api.close()


# --- answers ------------------------------------------------------------------------------------------------------


def test_an_object_comes_as_plain_json_as_of_a_second_before_stripe_answered() -> None:
    stripe = Stripe("door", NOON)
    product = stripe.create_product("Pro", metadata={"role": "PREMIUM"})
    with serving(stripe) as server:
        api = StripeApi(read_settings({"STRIPE_API_KEY": PRACTICE_KEY, "STRIPE_API_BASE": server.url}))
        answer = api.retrieve("product", product.id)
    assert type(answer.object) is type(answer.object["metadata"]) is dict
    assert (answer.object["name"], answer.object["metadata"]) == ("Pro", {"role": "PREMIUM"})
    assert answer.as_of == NOON - 1 - 1, "the request took less than a second, rounded up, and one more"


def test_what_took_long_to_answer_is_true_as_of_when_it_was_asked() -> None:
    with door(Said(headers={"Date": formatdate(NOON, usegmt=True)}, pause=1.1)) as (api, _):
        assert api.retrieve("product", "prod_1").as_of == NOON - 2 - 1


def test_all_pages_are_read_and_the_last_one_says_that_it_is_the_last() -> None:
    stripe = Stripe("door", NOON)
    ids = [stripe.create_product(f"P{n}").id for n in range(205)]
    with serving(stripe) as server:
        api = StripeApi(read_settings({"STRIPE_API_KEY": PRACTICE_KEY, "STRIPE_API_BASE": server.url}))
        pages = list(api.pages("product"))
        newer = list(api.pages("product", ending_before=ids[2]))
    assert [one["id"] for found in pages for one in found.objects] == ids[::-1]
    assert [(len(found.objects), found.has_more) for found in pages] == [(100, True), (100, True), (5, False)]
    assert [one["id"] for found in newer for one in found.objects] == ids[3:]


def test_subscriptions_of_every_status_are_listed() -> None:
    with door(page([], has_more=False)) as (api, stripe):
        list(api.pages("subscription", customer="cus_1"))
    assert "status=all" in stripe.asked[0].line


@pytest.mark.parametrize(
    "said",
    [
        Said([]),
        Said(b"<html>"),
        Said(b'{"object": "list", "data": [], "has_more": fal', cut=True),
        Said(b'{"object": "list", "data": [NaN], "has_more": false}'),
        Said({"object": "list", "data": []}),
        Said({"object": "list", "data": [], "has_more": True}),
        Said({"object": "list", "data": [{"object": "product"}], "has_more": False}),
        Said({"object": "list", "data": [], "has_more": False}, headers={"Date": "yesterday"}),
    ],
)
def test_what_is_no_page_is_taken_for_no_page(said: Said) -> None:
    with door(said, attempts=2) as (api, _), pytest.raises(StripeAwayError):
        list(api.pages("product"))


def test_a_change_is_made_once_however_often_it_is_tried() -> None:
    with door(refusal(500), Said({"id": "we_1", "object": "webhook_endpoint"})) as (api, stripe):
        api.modify("webhook_endpoint", "we_1", disabled=False)
    first, second = stripe.asked
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert second.body == "disabled=false"


# --- ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["", ".", "..", "a\n", "\x00", "a\x7fb", "\ud800", "x" * 256])
def test_what_would_ask_for_something_else_is_never_asked(id: str) -> None:
    with door(Said()) as (api, stripe):
        with pytest.raises(InvalidIdError):
            api.retrieve("product", id)
        assert stripe.asked == []


@pytest.mark.parametrize("id", ["pro plan/2?x#y", "...", "Ünï", "x" * 255])
def test_a_product_may_be_called_anything(id: str) -> None:
    stripe = Stripe("door", NOON)
    product = stripe.create_product("Pro")
    stripe.products[id] = product
    with serving(stripe) as server:
        api = StripeApi(read_settings({"STRIPE_API_KEY": PRACTICE_KEY, "STRIPE_API_BASE": server.url}))
        assert api.retrieve("product", id).object["name"] == "Pro"


# --- what fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (refusal(404, "resource_missing"), NotFoundError),
        (refusal(400, "resource_missing"), NotFoundError),
        (refusal(404), RejectedError),
        (refusal(401), RefusedError),
        (refusal(403), RefusedError),
        (refusal(400, "parameter_unknown"), RejectedError),
        (refusal(402), RejectedError),
    ],
)
def test_what_will_not_pass_is_asked_once_and_has_a_name(said: Said, error: type[StripeApiError]) -> None:
    with door(said) as (api, stripe):
        with pytest.raises(error) as raised:
            api.retrieve("product", "prod_1")
        assert type(raised.value) is error
        assert len(stripe.asked) == 1


@pytest.mark.parametrize(
    "said", [refusal(429), refusal(409, "lock_timeout"), refusal(500), refusal(503), Said(b"{", cut=True)]
)
def test_what_passes_is_asked_again(said: Said) -> None:
    with door(said, said, Said()) as (api, stripe):
        assert api.retrieve("product", "prod_1").object["id"] == "prod_1"
        assert len(stripe.asked) == 3


def test_nobody_asks_more_often_than_agreed() -> None:
    with door(refusal(500), attempts=3) as (api, stripe):
        with pytest.raises(StripeAwayError):
            api.retrieve("product", "prod_1")
        assert len(stripe.asked) == 3


def test_nobody_asks_for_longer_than_agreed() -> None:
    with door(refusal(503, Retry_After="20"), seconds=1.0) as (api, stripe):
        begin = time.monotonic()
        with pytest.raises(StripeAwayError) as raised:
            api.retrieve("product", "prod_1")
        assert time.monotonic() - begin < 5
        assert len(stripe.asked) == 1
        assert raised.value.retry_after == 20


def test_stripe_says_how_long_to_wait_and_is_obeyed() -> None:
    with door(refusal(503, Retry_After="1"), Said()) as (api, stripe):
        api.retrieve("product", "prod_1")
    assert stripe.asked[1].at - stripe.asked[0].at >= 1.0


def test_stripe_says_whether_to_ask_again_and_is_obeyed() -> None:
    with door(refusal(500, Stripe_Should_Retry="false"), Said()) as (api, stripe):
        with pytest.raises(StripeAwayError):
            api.retrieve("product", "prod_1")
        assert len(stripe.asked) == 1
    with door(refusal(400, Stripe_Should_Retry="true"), Said()) as (api, stripe):
        assert api.retrieve("product", "prod_1").object


def test_a_stripe_that_is_not_there_or_too_slow_will_pass() -> None:
    settings = {"STRIPE_API_KEY": KEY, "STRIPE_API_BASE": f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(StripeAwayError):
        StripeApi(read_settings(settings), attempts=2).retrieve("product", "prod_1")
    with (
        door(Said(pause=1.0), attempts=1, DUES_STRIPE_TIMEOUT="0.2") as (api, _),
        pytest.raises(StripeAwayError),
    ):
        api.retrieve("product", "prod_1")


def test_without_a_key_there_is_no_door() -> None:
    with pytest.raises(RefusedError, match="STRIPE_API_KEY"):
        StripeApi(read_settings({}))


@pytest.mark.parametrize("said", [refusal(400), refusal(401), refusal(500), Said(b"about alice@example.com", 500)])
def test_neither_the_key_nor_what_stripe_said_stands_in_errors_or_logs(
    said: Said, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    filter_ = "alice@example.com"  # kept out of the line that a traceback shows
    with door(said, attempts=2) as (api, _), pytest.raises(StripeApiError) as raised:
        list(api.pages("customer", email=filter_))
    shown = "".join(traceback.format_exception(raised.value)) + caplog.text + "".join(capfd.readouterr())
    assert str(said.status) in shown
    assert KEY not in shown
    assert "alice" not in shown


# --- the breaker --------------------------------------------------------------------------------------------------


def test_the_breaker_opens_after_five_failures_and_closes_when_stripe_is_back() -> None:
    with door(*[refusal(500)] * 5, Said()) as (api, stripe):
        api._breaker = Breaker(rest=0.3)
        with pytest.raises(StripeAwayError):
            api.retrieve("product", "prod_1")
        with pytest.raises(StripeAwayError) as raised:
            api.retrieve("product", "prod_1")
        assert len(stripe.asked) == 5, "nobody asked while it was open"
        assert raised.value.retry_after
        time.sleep(0.35)
        assert api.retrieve("product", "prod_1").object["id"] == "prod_1"
        assert api.retrieve("product", "prod_1").object["id"] == "prod_1"


def test_a_half_open_breaker_opens_again_at_the_first_failure() -> None:
    with door(refusal(500)) as (api, stripe):
        api._breaker = Breaker(rest=0.3)
        for _ in range(2):
            with pytest.raises(StripeAwayError):
                api.retrieve("product", "prod_1")
            time.sleep(0.35)
        assert len(stripe.asked) == 5 + 1


def test_too_many_requests_and_refusals_do_not_open_the_breaker() -> None:
    with door(*[refusal(404, "resource_missing"), refusal(403)] * 5, Said()) as (api, _):
        for _ in range(10):
            with pytest.raises(StripeApiError):
                api.retrieve("product", "prod_1")
        assert api.retrieve("product", "prod_1").object
    with door(*[refusal(429)] * 8, Said(), attempts=9) as (api, _):
        assert api.retrieve("product", "prod_1").object


# --- the budget ---------------------------------------------------------------------------------------------------


def test_all_workers_together_keep_to_one_budget(redis_db_url: str) -> None:
    with scripted(Said()) as stripe:
        settings = stripe.settings(REDIS_URL=redis_db_url, DUES_STRIPE_RATE="20")

        def ask() -> None:
            api = StripeApi(settings, seconds=30)
            for _ in range(15):
                api.retrieve("product", "prod_1")
            api.close()

        workers = [threading.Thread(target=ask) for _ in range(3)]
        begin = time.monotonic()
        for one in workers:
            one.start()
        for one in workers:
            one.join()
        took = time.monotonic() - begin
    assert len(stripe.asked) == 45
    # A full bucket holds ten, of which five are for what is urgent.
    assert took >= (45 - 5) / 20 - 0.05
    times = [one.at for one in stripe.asked]
    assert all(later - earlier > 0.9 for earlier, later in zip(times, times[27:], strict=False))


def test_what_a_person_waits_for_goes_before_what_can_wait(redis_db_url: str) -> None:
    one, other = Budget(redis_db_url, 2), Budget(redis_db_url, 2)
    assert one.take(urgent=False) == 0.0
    assert one.take(urgent=False) > 0.4, "half a second until there is one more than is left for the urgent"
    assert other.take(urgent=True) == 0.0
    assert other.take(urgent=True) > 0.0
    one.close()
    other.close()


def test_too_many_requests_slow_everybody(redis_db_url: str) -> None:
    with door(refusal(429, Retry_After="2"), Said(), REDIS_URL=redis_db_url) as (api, stripe):
        threading.Timer(0.3, lambda: waits.append(other.take(urgent=True))).start()
        waits: list[float] = []
        other = Budget(redis_db_url, 20)
        api.retrieve("product", "prod_1")
        other.close()
    assert waits[0] > 1.5
    assert stripe.asked[1].at - stripe.asked[0].at >= 2.0


def test_without_redis_stripe_is_asked_all_the_same(own_valkey: Callable[..., Any]) -> None:
    valkey: EmbeddedValkey = own_valkey()
    with door(Said(), REDIS_URL=valkey.redis_url, DUES_STRIPE_RATE="1") as (api, stripe):
        api.retrieve("product", "prod_1")
        valkey.stop()
        begin = time.monotonic()
        for _ in range(10):
            api.retrieve("product", "prod_1")
        assert time.monotonic() - begin < 3
        assert len(stripe.asked) == 11


def test_who_waits_too_long_for_the_budget_is_told(redis_db_url: str) -> None:
    with door(Said(), seconds=0.5, REDIS_URL=redis_db_url, DUES_STRIPE_RATE="1") as (api, stripe):
        api.retrieve("product", "prod_1")
        with pytest.raises(StripeAwayError) as raised:
            api.retrieve("product", "prod_1")
        assert raised.value.retry_after
        assert len(stripe.asked) == 1
