"""The read API and spending, on a real PostgreSQL that the road has filled."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from flask import Flask
from werkzeug.test import TestResponse

from ingest import create_app
from models.settings import Settings, read_settings
from simulator.calendar import DAY, HOUR
from simulator.render import render_event
from simulator.state import Stripe
from tests.ingest.conftest import application
from tests.ingest.serving import TOKEN, settings_of
from tests.support import eventually, free_port
from tests.workers.world import World, world
from workers.catalog_version import CatalogVersion

ANN = "user_ann"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def here(database_url: str) -> Iterator[World]:
    with world(database_url) as here:
        here.users(ANN)
        yield here


def get(app: Flask, path: str) -> TestResponse:
    return app.test_client().get(path, headers=WITH_TOKEN)


def shown(app: Flask, user: str = ANN) -> dict[str, Any]:
    answer = get(app, f"/api/users/{user}")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    found: dict[str, Any] = answer.get_json()
    return found


def post(app: Flask, body: Any, user: str = ANN) -> TestResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return app.test_client().post(f"/api/users/{user}/tokens/spend", data=data, headers=WITH_TOKEN)


def spend(app: Flask, amount: Any, key: Any = "key", user: str = ANN) -> tuple[int, Any]:
    answer = post(app, {"amount": amount, "key": key}, user)
    return answer.status_code, answer.get_json()


def give(here: World, tokens: int, expires: str | None = None) -> None:
    """Tokens of a grant, as the worker books them; `expires` is an interval from now."""
    here.execute(
        "INSERT INTO token_ledger (user_id, kind, amount, key, source, expires_at)"
        " VALUES (:user, 'grant', :n, 'grant:1:' || :source || ':user', :source, now() + CAST(:expires AS interval))",
        user=ANN,
        n=tokens,
        source=f"il_{expires}",
        expires=expires,
    )


def balance(here: World) -> tuple[int, int]:
    """`users.tokens`, and the sum of the entries."""
    tokens, booked = here.one(
        "SELECT tokens, (SELECT coalesce(sum(amount), 0) FROM token_ledger WHERE user_id = u.id) FROM users u"
        " WHERE id = :id",
        id=ANN,
    )
    return tokens, booked


def member(here: World, *, days_ago: int = 3, refund: int = 0) -> tuple[Stripe, str]:
    """Ann bought Pro some days ago; the Stripe where she did, and the subscription."""
    stripe = Stripe(1, int(time.time()) - days_ago * DAY)
    product = stripe.create_product("Pro", metadata={"role": "PREMIUM", "tokens": "500"})
    price = stripe.create_price(product.id, 900)
    customer = stripe.create_customer("ann@pays.example", metadata={"user_id": ANN})
    bought = stripe.checkout(price.id, customer=customer.id)
    here.feed_as_list(render_event(event) for event in stripe.events)
    if refund:
        here.execute("UPDATE stripe_charges SET amount_refunded = :n", n=refund)
    return stripe, bought.id


def subscribe(here: World, id: str, **columns: Any) -> None:
    """A subscription of Ann's as a row."""
    values = {"id": id, "user_id": ANN, "source": "evt_1", "status": "active", **columns}
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    here.execute(f"INSERT INTO user_subscriptions ({names}) VALUES ({places})", **values)


# --- who may ask ------------------------------------------------------------------------------------------------------

READ = [
    *(f"/api/users/x{part}" for part in ("", "/payments", "/explain")),
    *("/api/users?email=x", "/api/products"),
]
WRITE = ["/api/users/x/tokens/spend", "/api/users/x/sync"]


@pytest.mark.parametrize("path", [*READ, *WRITE, "/api/openapi.json"])
def test_nobody_is_told_anything_without_a_token(path: str) -> None:
    app = create_app(Settings(stripe_webhook_secrets=("whsec_x",), api_tokens=("one", "two")))
    method = "POST" if path in WRITE else "GET"
    for header in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}, {"Authorization": "Bearer"}):
        answer = app.test_client().open(path, method=method, headers=header)
        assert answer.status_code == 401
        assert set(answer.get_json()) == {"error", "detail"}
        assert answer.get_json()["error"] == "unauthorized"


def test_without_a_token_set_there_are_no_routes() -> None:
    for settings, only in ((Settings(), None), (Settings(api_tokens=("one",)), "webhook")):
        rules = {rule.rule for rule in create_app(settings, only=only).url_map.iter_rules()}
        assert not [rule for rule in rules if rule.startswith("/api")]


# --- one user ---------------------------------------------------------------------------------------------------------


def test_a_member_is_shown_as_the_contract_has_it(app: Flask, here: World) -> None:
    stripe, subscription = member(here)
    bought = stripe.subscriptions[subscription]
    found = shown(app)
    assert list(found) == sorted(found)  # Flask's own order: nothing else may be relied upon
    assert {name: found[name] for name in ("id", "email", "name", "role", "membership_status")} == {
        "id": ANN, "email": f"{ANN}@example.com", "name": None, "role": "PREMIUM", "membership_status": "ACTIVE",
    }  # fmt: skip
    assert (found["tokens"], found["grace_until"], found["stale"]) == (500, None, False)
    (price,) = stripe.prices.values()
    of = found["subscription"]
    assert of == {
        "id": subscription, "status": "active", "quantity": 1, "cancel_at_period_end": False, "cancel_at": None,
        "current_period_start": of["current_period_start"], "current_period_end": of["current_period_end"],
        "product": {"id": price.product, "name": "Pro"},
        "price": {"id": price.id, "unit_amount": 900, "currency": "usd", "recurring_interval": "month"},
    }  # fmt: skip
    times = [found["tokens_expires_at"], found["as_of"], of["current_period_start"], of["current_period_end"]]
    assert all(ISO.fullmatch(moment) for moment in times)
    began = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(bought.created))
    assert of["current_period_start"] == began


def test_a_user_is_found_by_e_mail_in_any_case(app: Flask, here: World) -> None:
    assert get(app, f"/api/users?email={ANN.upper()}@Example.com").get_json() == shown(app)
    assert get(app, "/api/users?email=nobody@example.com").status_code == 404
    assert get(app, "/api/users").status_code == 400


def test_a_user_without_anything_is_shown_so(app: Flask, here: World) -> None:
    found = shown(app)
    assert (found["subscription"], found["as_of"], found["stale"]) == (None, None, False)
    assert (found["tokens"], found["tokens_expires_at"], found["role"]) == (0, None, "USER")


def test_an_unknown_user_is_a_404(app: Flask) -> None:
    for path in ("/api/users/nobody", "/api/users/nobody/payments"):
        answer = get(app, path)
        assert (answer.status_code, answer.get_json()["error"]) == (404, "not_found")
    assert spend(app, 1, user="nobody")[0] == 404


SOON, LONG_GONE = "2126-01-01T00:00:00Z", "2020-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([{"id": "a", "status": "canceled"}, {"id": "b", "status": "unpaid"}], "b"),
        ([{"id": "a", "status": "canceled"}, {"id": "b", "status": "incomplete"}], "a"),
        ([{"id": "a", "status": "unpaid"}, {"id": "b", "status": "trialing", "stripe_product_id": "low"}], "b"),
        # Grace is access, and the higher role goes before the live one.
        ([{"id": "a", "stripe_product_id": "low"},
          {"id": "b", "status": "past_due", "current_period_start": SOON}], "b"),
        ([{"id": "a", "stripe_product_id": "low"},
          {"id": "b", "status": "past_due", "current_period_start": LONG_GONE}], "a"),
        ([{"id": "a", "stripe_product_id": "ranked"}, {"id": "b", "stripe_product_id": "plain"}], "a"),
        ([{"id": "a", "current_period_end": SOON}, {"id": "b", "current_period_end": LONG_GONE}], "a"),
        ([{"id": "a"}, {"id": "b"}], "b"),
        # What the decision stands on comes first, whatever the rows say by now.
        ([{"id": "a", "stripe_product_id": "chosen"}, {"id": "b", "stripe_product_id": "ranked"}], "a"),
        ([{"id": "a", "stripe_product_id": "chosen", "status": "canceled"}, {"id": "b"}], "b"),
        ([{"id": "b", "status": None, "source": "stub"}], None),
    ],
)  # fmt: skip
def test_the_subscription_shown_is_the_best(app: Flask, here: World, rows: list[Any], best: str | None) -> None:
    for id, metadata in (("low", {"role": "USER"}), ("ranked", {"rank": "3"}), ("plain", {}), ("chosen", {})):
        here.execute(
            "INSERT INTO stripe_products (id, metadata) VALUES (:id, CAST(:m AS jsonb))", id=id, m=json.dumps(metadata)
        )
    here.execute("UPDATE users SET stripe_product_id = 'chosen'")
    for row in rows:
        subscribe(here, **row)
    found = shown(app)["subscription"]
    assert (found and found["id"]) == best


def test_an_unpaid_invoice_dates_the_grace_of_what_is_shown(app: Flask, here: World) -> None:
    here.execute("INSERT INTO stripe_products (id, metadata) VALUES ('low', '{\"role\": \"USER\"}')")
    subscribe(here, "a", stripe_product_id="low")
    subscribe(here, "b", status="past_due", current_period_start=LONG_GONE)
    assert shown(app)["subscription"]["id"] == "a"
    here.execute(
        "INSERT INTO stripe_invoices (id, stripe_subscription_id, status, created, finalized_at)"
        " VALUES ('in_1', 'b', 'open', now(), now())"
    )
    assert shown(app)["subscription"]["id"] == "b"


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ("UPDATE user_subscriptions SET current_period_end = now() - interval '1 second'", True),
        ("UPDATE user_subscriptions SET status = 'trialing', current_period_end = now() - interval '1 second'", True),
        ("UPDATE user_subscriptions SET status = 'canceled', current_period_end = now() - interval '1 day'", False),
        ("UPDATE user_subscriptions SET status = 'past_due', current_period_end = now() - interval '1 day'", False),
        ("UPDATE user_subscriptions SET contested = true", True),
        ("UPDATE stripe_customers SET contested = true", True),
        ("UPDATE stripe_products SET contested = false", False),
    ],
)
def test_an_answer_that_may_be_out_of_date_says_so(app: Flask, here: World, change: str, stale: bool) -> None:
    member(here)
    assert shown(app)["stale"] is False
    here.execute(change)
    assert shown(app)["stale"] is stale


def test_as_of_is_the_newest_news_aliases_included(app: Flask, here: World) -> None:
    member(here)
    here.execute(
        "INSERT INTO stripe_customers (id, alias_of, source, as_of, contested)"
        " SELECT 'cus_alias', id, 'evt_1', '2126-01-01', true FROM stripe_customers"
    )
    found = shown(app)
    assert (found["as_of"], found["stale"]) == ("2126-01-01T00:00:00.000Z", True)


# --- payments ---------------------------------------------------------------------------------------------------------


def payments(app: Flask, query: str = "") -> dict[str, Any]:
    answer = get(app, f"/api/users/{ANN}/payments{query}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.get_json()
    return found


def paid(here: World, id: str, created: str, **columns: Any) -> None:
    """A payment of Ann's as a row."""
    values = {"id": id, "user_id": ANN, "source": "evt_1", "created": created, **columns}
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    here.execute(f"INSERT INTO payment_history ({names}) VALUES ({places})", **values)


def test_a_payment_is_shown_as_the_contract_has_it(app: Flask, here: World) -> None:
    stripe, subscription = member(here, refund=200)
    (intent,) = stripe.payment_intents.values()
    (invoice,) = stripe.invoices.values()
    found = payments(app)
    (payment,) = found["payments"]
    assert found["next_cursor"] is None
    receipt, created = payment.pop("receipt_url"), payment.pop("created")
    assert receipt is None or receipt.startswith("https://")
    assert created == time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(intent.created))
    assert payment == {
        "id": intent.id, "amount": 900, "amount_received": 900, "amount_refunded": 200, "currency": "usd",
        "status": "succeeded", "disputed": False, "invoice_id": invoice.id, "subscription_id": subscription,
        "exponent": 2,
    }  # fmt: skip


def test_charges_and_disputes_of_a_payment_are_summed_up(app: Flask, here: World) -> None:
    for number in range(1, 6):
        paid(here, f"pi_{number}", f"2026-01-0{number}T00:00:00Z", currency="jpy")
    here.execute(
        "INSERT INTO stripe_charges (id, payment_intent_id, amount_refunded, disputed, status, receipt_url, created)"
        " VALUES ('ch_1', 'pi_1', 3, false, 'failed', 'https://r/1', now()),"
        " ('ch_2', 'pi_1', 4, true, 'succeeded', 'https://r/2', '2020-01-01'),"
        " ('ch_3', 'pi_2', null, null, 'succeeded', null, null), ('ch_4', 'pi_3', 5, false, null, null, null)"
    )
    here.execute(
        "INSERT INTO stripe_disputes (id, charge_id, payment_intent_id) VALUES ('dp_1', 'ch_3', null),"
        " ('dp_2', null, 'pi_4'), ('dp_3', null, null)"
    )
    found = [
        (one["id"], one["amount_refunded"], one["disputed"], one["receipt_url"], one["exponent"])
        for one in payments(app)["payments"]
    ]
    assert found == [
        ("pi_5", 0, False, None, 0),
        ("pi_4", 0, True, None, 0),
        ("pi_3", 5, False, None, 0),
        ("pi_2", 0, True, None, 0),
        ("pi_1", 7, True, "https://r/2", 0),
    ]


def test_stripes_own_word_on_the_invoice_goes_before_what_old_versions_said(app: Flask, here: World) -> None:
    paid(here, "pi_1", "2026-01-02T00:00:00Z")
    paid(here, "pi_2", "2026-01-01T00:00:00Z")
    here.execute("INSERT INTO user_subscriptions (id) VALUES ('sub_1')")
    here.execute(
        "INSERT INTO stripe_invoices (id, stripe_subscription_id)"
        " VALUES ('in_1', 'sub_1'), ('in_2', null), ('in_3', null)"
    )
    here.execute("INSERT INTO stripe_charges (id, payment_intent_id) VALUES ('ch_2', 'pi_2')")
    here.execute(
        "INSERT INTO stripe_invoice_payments (id, stripe_invoice_id, payment_intent_id, charge_id, status) VALUES"
        " ('ch_1:in_2', 'in_2', 'pi_1', null, 'paid'), ('inpay_1', 'in_1', 'pi_1', null, 'open'),"
        " ('inpay_2', 'in_3', null, 'ch_2', 'paid')"
    )
    found = [(one["invoice_id"], one["subscription_id"]) for one in payments(app)["payments"]]
    assert found == [("in_1", "sub_1"), ("in_3", None)]


@pytest.mark.parametrize(
    ("currency", "exponent"), [("usd", 2), ("jpy", 0), ("kwd", 3), ("isk", 2), ("ugx", 2), ("xaf", 0), (None, None)]
)
def test_a_currency_has_its_exponent(app: Flask, here: World, currency: str | None, exponent: int | None) -> None:
    paid(here, "pi_1", "2026-01-01T00:00:00Z", currency=currency)
    (payment,) = payments(app)["payments"]
    assert (payment["currency"], payment["exponent"]) == (currency, exponent)


def test_pages_follow_each_other_whatever_comes_in_between(app: Flask, here: World) -> None:
    # Several share a moment: the id decides.
    ids = [f"pi_{number:02}" for number in range(12)]
    for id in ids:
        paid(here, id, f"2026-01-{int(id[3:]) // 4 + 1:02}T00:00:00.123Z")
    here.execute("INSERT INTO users (id) VALUES ('another')")
    here.execute("INSERT INTO payment_history (id, user_id, created) VALUES ('pi_other', 'another', '2026-01-01')")
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = payments(app, f"?limit=5&cursor={cursor}")
        seen += [one["id"] for one in page["payments"]]
        assert len(page["payments"]) <= 5
        cursor = page["next_cursor"]
        paid(here, f"pi_new_{len(seen)}", "2026-02-01T00:00:00Z")
    assert seen == sorted(ids, reverse=True)
    assert len(payments(app)["payments"]) == 12 + 3


def test_a_page_that_is_just_full_is_the_last(app: Flask, here: World) -> None:
    for number in range(21):
        paid(here, f"pi_{number:02}", "2026-01-01T00:00:00Z")
    page = payments(app)
    assert len(page["payments"]) == 20
    assert page["next_cursor"] is not None
    assert payments(app, "?limit=21")["next_cursor"] is None


@pytest.mark.parametrize("limit", ["0", "101", "-1", "", "x", "1.5", "٣", "9" * 10_000, "%00"])
def test_a_limit_that_is_none_is_refused(app: Flask, here: World, limit: str) -> None:
    answer = get(app, f"/api/users/{ANN}/payments?limit={limit}")
    assert (answer.status_code, answer.get_json()["error"]) == (400, "bad_request")


def encoded(cursor: bytes) -> str:
    return base64.urlsafe_b64encode(cursor).decode()


def test_a_hostile_cursor_is_refused(app: Flask, here: World) -> None:
    hostile = ["x", "%00", "%ED%A0%80", "Ä", "=", "a" * 10_000, "2026-01-01", "!!!!", encoded(b"\xed\xa0\x80")]
    hostile += [encoded(one) for one in (b"", b"infinity pi_1", b"now x", b"2026-99-01T00:00:00.000Z pi_1")]
    hostile += [encoded(b"2026-01-01T00:00:00.000Z a\0"), encoded(b"x" * 10_000)]
    for cursor in hostile:
        if cursor:
            answer = get(app, f"/api/users/{ANN}/payments?cursor={quote(cursor, safe='%')}")
            assert (answer.status_code, answer.get_json()["error"]) == (400, "bad_request"), cursor
    # These can be read, and nothing follows them or everything does.
    for readable in (
        b"0001-01-01T00:00:00.000Z ",
        b"9999-12-31T23:59:59.999Z " + b"x" * 9000,
        "2026-01-01T00:00:00.000Z ü".encode(),
    ):
        assert get(app, f"/api/users/{ANN}/payments?cursor={encoded(readable)}").status_code == 200


HOSTILE = ["%00", "a%00b", "%ED%A0%80", "%FF", "x" * 10_000, "%F0%9F%92%A9", "'; DROP TABLE users; --", "..", "%25"]


def test_hostile_ids_and_addresses_name_nobody(app: Flask, here: World) -> None:
    for name in HOSTILE:
        for path in (f"/api/users/{name}", f"/api/users/{name}/payments", f"/api/users?email={name}"):
            answer = get(app, path)
            assert (answer.status_code, answer.get_json()["error"]) == (404, "not_found"), path
        assert spend(app, 1, user=name)[0] == 404


# --- what is on sale --------------------------------------------------------------------------------------------------


def test_what_is_on_sale_is_shown_as_the_contract_has_it(app: Flask, here: World, redis_db_url: str) -> None:
    with contextlib.closing(CatalogVersion(redis_db_url)) as version:
        here.road.renew_catalog = version.renew
        check_what_is_on_sale(app, here)
        here.execute("UPDATE stripe_prices SET deleted_at = now()")
        version.renew()
        assert get(app, "/api/products").get_json()["products"] == []


def check_what_is_on_sale(app: Flask, here: World) -> None:
    assert get(app, "/api/products").get_json() == {"products": [], "as_of": None}
    stripe = Stripe(1, int(time.time()) - DAY)
    pro = stripe.create_product("Pro", metadata={"role": "PREMIUM"})
    stripe.advance(stripe.now + HOUR)
    monthly = stripe.create_price(pro.id, 900, lookup_key="pro")
    stripe.advance(stripe.now + HOUR)
    cent = stripe.create_price(pro.id, None, unit_amount_decimal="0.05", nickname="By the piece")
    for name in ("Without price", "Archived", "Deleted"):
        other = stripe.create_product(name)
        if name == "Archived":
            stripe.create_price(other.id, 1)
            stripe.archive_product(other.id)
        if name == "Deleted":
            stripe.delete_product(other.id)
    stripe.archive_price(stripe.create_price(pro.id, 1).id)
    here.feed_as_list(render_event(event) for event in stripe.events)
    found = get(app, "/api/products").get_json()
    assert ISO.fullmatch(found["as_of"])
    shared = {
        "currency": "usd",
        "type": "recurring",
        "recurring_interval": "month",
        "recurring_interval_count": 1,
        "metadata": {},
    }
    assert found["products"] == [
        {
            "id": pro.id,
            "name": "Pro",
            "description": None,
            "metadata": {"role": "PREMIUM"},
            "prices": [
                {"id": monthly.id, "unit_amount": 900, "unit_amount_decimal": "900", "nickname": None,
                 "lookup_key": "pro", **shared},
                {"id": cent.id, "unit_amount": None, "unit_amount_decimal": "0.05", "nickname": "By the piece",
                 "lookup_key": None, **shared},
            ],
        }
    ]  # fmt: skip


# --- spending ---------------------------------------------------------------------------------------------------------


def test_tokens_are_spent_nearest_expiry_first_and_the_same_key_spends_once(app: Flask, here: World) -> None:
    give(here, 10, "2 days")
    give(here, 10, "1 day")
    give(here, 10)
    assert spend(app, 15, "a:b%") == (200, {"tokens": 15})
    assert spend(app, 5, "a") == (200, {"tokens": 10})
    # The same answer again, whatever happened since.
    assert spend(app, 15, "a:b%") == (200, {"tokens": 15})
    assert spend(app, 1, "a:b%") == (200, {"tokens": 15})
    assert balance(here) == (10, 10)
    assert shown(app)["tokens_expires_at"] is None


def test_spending_moves_the_next_expiry(app: Flask, here: World) -> None:
    give(here, 10, "2 days")
    give(here, 10, "1 day")
    here.execute("UPDATE users SET next_change_at = NULL")
    assert spend(app, 10) == (200, {"tokens": 10})
    expires, next_change, expected = here.one(
        "SELECT tokens_expires_at, next_change_at, (SELECT max(expires_at) FROM token_ledger) FROM users"
    )
    assert expires == next_change == expected
    here.execute("UPDATE users SET next_change_at = '2000-01-01'")
    spend(app, 1, "more")
    assert here.one("SELECT extract(year FROM next_change_at) FROM users")[0] == 2000


def test_more_than_there_is_is_refused_as_a_whole(app: Flask, here: World) -> None:
    give(here, 10)
    status, answer = spend(app, 11)
    assert (status, answer["error"]) == (409, "insufficient")
    assert balance(here) == (10, 10)
    # A refused key may be tried again when there is more.
    give(here, 5, "1 day")
    assert spend(app, 11) == (200, {"tokens": 4})


def test_what_has_expired_is_gone_even_if_the_spend_is_refused(app: Flask, here: World) -> None:
    give(here, 10, "-1 second")
    give(here, 3, "1 hour")
    assert spend(app, 4)[0] == 409
    assert balance(here) == (3, 3)
    assert here.one("SELECT amount FROM token_ledger WHERE kind = 'expire'")[0] == -10
    assert shown(app)["tokens"] == 3


BAD_ORDERS: list[Any] = [
    b"", b"{", b"[]", b"1", b"\xff", b'{"amount": 1, "key": "\\ud800"}', b"[" * 12_000,
    b'{"amount": ' + b"9" * 5000 + b"}", {}, {"amount": 1}, {"key": "k"},
    *({"amount": n, "key": "k"} for n in (0, -1, 1.5, 1e300, True, None, "1", 1_000_000_001, [1])),
    *({"amount": 1, "key": key} for key in ("", "k" * 256, "a\0b", 1, None, ["k"])), b'{"amount": NaN, "key": "k"}',
]  # fmt: skip


def test_an_order_that_makes_no_sense_is_refused(app: Flask, here: World) -> None:
    give(here, 10)
    for body in BAD_ORDERS:
        answer = post(app, body)
        assert (answer.status_code, answer.get_json()["error"]) == (400, "bad_request"), body
    assert post(app, b" " * 20_000).status_code == 413
    assert balance(here) == (10, 10)
    assert spend(app, 1.0, "💶" * 255) == (200, {"tokens": 9})


@pytest.mark.parametrize("switch", ["grants", "processing", "repairs"])
def test_spending_goes_on_whatever_is_paused(here: World, database_url: str, redis_db_url: str, switch: str) -> None:
    give(here, 10)
    with application(database_url, redis_db_url, DUES_PAUSE=switch) as app:
        assert spend(app, 4) == (200, {"tokens": 6})


def test_spends_that_race_never_overdraw_and_always_add_up(app: Flask, here: World, database_url: str) -> None:
    give(here, 60, "1 day")
    give(here, 40)
    went: list[int] = []
    answers: list[int] = []

    def by_api(worker: int) -> None:
        for number in range(10):
            # Two workers share each key.
            status = 503
            while status == 503:
                status, _ = spend(app, 3, f"{worker // 2}-{number}")
            answers.append(status)

    def by_sql() -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            for _ in range(15):
                try:
                    connection.execute("UPDATE users SET tokens = tokens - 2 WHERE id = %s", (ANN,))
                    went.append(2)
                except psycopg.errors.CheckViolation:
                    went.append(0)

    threads = [threading.Thread(target=by_api, args=(worker,)) for worker in range(4)]
    threads += [threading.Thread(target=by_sql) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert (len(answers), len(went)) == (40, 30)
    assert set(answers) <= {200, 409}
    (spent,) = here.one("SELECT -coalesce(sum(amount), 0) FROM token_ledger WHERE kind = 'spend'")
    tokens, booked = balance(here)
    # 120 were asked for, so all is gone but what is too little for anybody.
    assert 0 <= tokens == booked == 100 - spent - sum(went) < 2
    (most,) = here.one(
        "SELECT max(n) FROM (SELECT -sum(amount) AS n FROM token_ledger WHERE kind = 'spend'"
        " GROUP BY split_part(key, ':', 4)) AS s"
    )
    assert most == 3


def test_a_spend_waits_for_a_direct_write_and_sees_it(app: Flask, here: World, database: psycopg.Connection) -> None:
    give(here, 10)
    found: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: found.append(spend(app, 8)))
    with database.transaction():
        database.execute("UPDATE users SET tokens = tokens - 5")
        thread.start()
        eventually(
            lambda: here.one("SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM"
                             " pg_database WHERE datname = current_database()) OR NOT granted AND database IS NULL")[0],
            timeout=1.2,
        )  # fmt: skip
    thread.join(10)
    assert [(status, answer["tokens"]) for status, answer in found] == [(409, 5)]
    assert balance(here) == (5, 5)


# --- without PostgreSQL -----------------------------------------------------------------------------------------------


def test_without_postgresql_everything_is_a_503_in_time() -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    app = create_app(read_settings(settings_of(url, f"redis://127.0.0.1:{free_port()}")))
    try:
        for path in [*READ, WRITE[1]]:
            begin = time.monotonic()
            answer = app.test_client().open(path, method="POST" if path in WRITE else "GET", headers=WITH_TOKEN)
            assert (answer.status_code, answer.get_json()["error"]) == (503, "service_unavailable")
            assert int(answer.headers["Retry-After"]) > 0
            assert time.monotonic() - begin < 2.5
        assert spend(app, 1)[0] == 503
    finally:
        app.extensions["bell"].close()
        app.extensions["database"].close()


def test_a_user_locked_by_somebody_else_is_a_503_and_can_still_be_read(
    app: Flask, here: World, database: psycopg.Connection
) -> None:
    give(here, 10)
    with database.transaction():
        database.execute("SELECT FROM users FOR UPDATE")
        assert spend(app, 1)[0] == 503
        assert shown(app)["tokens"] == 10
    assert spend(app, 1) == (200, {"tokens": 9})
