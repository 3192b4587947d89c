"""`dues doctor`: each thing that can be wrong is found, with what to do, and well is well."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import psycopg
import pytest

from ops import doctor
from simulator.api import KEY
from simulator.server import serving
from simulator.state import Stripe
from tests.ops.command_line import Answer, Dues

PURCHASE = (
    "INSERT INTO stripe_checkout_sessions (id, mode, status, payment_status)"
    " VALUES ('cs_1', 'payment', 'complete', 'no_payment_required')"
)
WELL = "INSERT INTO sync_runs (kind, status) VALUES ('watchdog', 'done')"


def findings(answer: Answer, *, level: str | None = None) -> dict[str, str]:
    """What was found that is not well, by check."""
    return {
        one["check"]: one["found"]
        for one in answer.json["findings"]
        if one["level"] == level or (level is None and one["level"] != "ok")
    }


@pytest.fixture
def well(dues: Dues, plain: psycopg.Connection, redis_db_url: str) -> Dues:
    """`dues` where all is well."""
    dues.environment["REDIS_URL"] = redis_db_url
    plain.execute(WELL)
    return dues


def test_when_all_is_well_it_says_so_and_ends_with_0(well: Dues) -> None:
    answer = well("doctor", "--json")
    assert (answer.code, answer.json["ok"], findings(answer)) == (0, True, {}), answer.stdout
    assert {"settings", "database", "schema", "redis", "clock", "beat"} <= {
        one["check"] for one in answer.json["findings"]
    }


def test_what_is_wrong_is_said_with_what_to_do_and_ends_with_1(well: Dues, plain: psycopg.Connection) -> None:
    plain.execute("INSERT INTO stripe_events (id, type, status) VALUES ('evt_1', 't', 'dead')")
    answer = well("doctor")
    assert answer.code == 1
    assert "warning  dead       1 dead letters: evt_1" in answer.stdout
    assert "→ `dues events show ID` tells why" in answer.stdout


def test_missing_settings_are_named_all_at_once(bare: Dues) -> None:
    answer = bare("doctor", "--json", DUES_GRACE_DAYS="soon")
    assert answer.code == 1
    assert findings(answer) == {"settings": "DUES_GRACE_DAYS must be a whole number from 0 to 3650"}
    answer = bare("doctor", "--json")
    assert [one["found"].split()[0] for one in answer.json["findings"]] == ["DATABASE_URL", "REDIS_URL"]


def test_a_database_that_is_away_is_a_finding_without_its_password(bare: Dues, redis_db_url: str) -> None:
    answer = bare("doctor", "--json", DATABASE_URL="postgresql://ada:hidden@127.0.0.1:1/dues", REDIS_URL=redis_db_url)
    assert answer.code == 1
    assert "can't be reached" in findings(answer, level="problem")["database"]
    assert "hidden" not in answer.stdout


def test_redis_that_is_away_is_a_finding(well: Dues) -> None:
    answer = well("doctor", "--json", REDIS_URL="redis://127.0.0.1:1/0")
    assert findings(answer) == {"redis": "Redis does not answer: events wait for the sweep"}


def test_an_unmigrated_database_is_told_so_and_looked_at_no_further(
    bare: Dues, empty_database_url: str, redis_db_url: str
) -> None:
    answer = bare("doctor", "--json", DATABASE_URL=empty_database_url, REDIS_URL=redis_db_url)
    assert findings(answer)["schema"].startswith("the database is at revision base")
    assert answer.json["findings"][-1]["check"] == "schema"


@pytest.mark.parametrize(
    ("insert", "check", "found"),
    [
        ("DELETE FROM sync_runs", "beat", "the watchdog has not looked yet"),
        (
            "UPDATE sync_runs SET started_at = now() - interval '20 minutes'",
            "beat",
            "the watchdog last looked 20 minutes ago",
        ),
        (
            "INSERT INTO users (id, next_change_at) VALUES ('u', now() - interval '1 hour')",
            "undecided",
            "1 decisions are overdue: u",
        ),
        (
            "INSERT INTO stripe_events (id, type, due_at) VALUES ('evt_1', 't', now() - interval '1 hour')",
            "waiting",
            "1 events are overdue: evt_1",
        ),
        (
            PURCHASE,
            "purchases",
            "1 purchases wait for their line items: cs_1",
        ),
        (
            "INSERT INTO stripe_products (id, metadata) VALUES ('prod_1', '{\"tokens\": \"many\"}')",
            "metadata",
            "1 values of metadata count as nothing: prod_1 tokens",
        ),
        (
            "INSERT INTO stripe_customers (id, contested) VALUES ('cus_1', true)",
            "contested",
            "1 rows are contested: cus_1",
        ),
    ],
)
def test_each_of_these_is_found(well: Dues, plain: psycopg.Connection, insert: str, check: str, found: str) -> None:
    plain.execute(insert.encode())
    assert findings(well("doctor", "--json")) == {check: found}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"DUES_PAUSE": "processing,repairs"}, "DUES_PAUSE holds repairs"),
        ({"DUES_SHADOW": "1"}, "DUES_SHADOW is on: users are left alone"),
        ({"DUES_ENV": "staging"}, "without STRIPE_API_KEY what never arrived is not found"),
    ],
)
def test_a_switch_that_was_left_on_is_found(well: Dues, changes: dict[str, str], said: str) -> None:
    assert findings(well("doctor", "--json", **changes)) == {"settings": said}


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [(0.2, "ok", "agree to 0.2 s"), (-7, "warning", "7 s ahead of"), (400, "problem", "400 s behind")],
)
def test_clocks_are_judged_by_how_far_they_are_apart(seconds: float, level: str, words: str) -> None:
    finding = doctor.clock("Stripe's", seconds)
    assert (finding.level, words in finding.found) == (level, True), finding


def test_every_look_of_models_attention_is_explained() -> None:
    from models.attention import LOOKS

    assert set(doctor.LOOKS) == set(LOOKS)


def test_it_only_reads(well: Dues) -> None:
    url = well.environment["DATABASE_URL"]
    read_only = f"{url}{'&' if '?' in url else '?'}options=-c%20default_transaction_read_only%3Don"
    assert well("doctor", "--json", DATABASE_URL=read_only).code == 0


# --- Stripe -----------------------------------------------------------------------------------------------------------

HOOK = "https://example.com/webhooks/stripe"


@pytest.fixture
def stripe() -> Stripe:
    """A Stripe whose clock is right."""
    return Stripe("doctor", int(time.time()))


@pytest.fixture
def asking(well: Dues, stripe: Stripe, plain: psycopg.Connection) -> Iterator[Dues]:
    """`dues` where all is well, with a key."""
    plain.execute("INSERT INTO sync_runs (kind, status) VALUES ('reconcile', 'done')")
    with serving(stripe) as server:
        well.environment |= {"STRIPE_API_KEY": KEY, "STRIPE_API_BASE": server.url, "DUES_WEBHOOK_URL": HOOK}
        yield well


def test_with_a_key_stripe_its_clock_and_the_endpoint_are_looked_at(asking: Dues, stripe: Stripe) -> None:
    stripe.create_webhook_endpoint(HOOK)
    answer = asking("doctor", "--json")
    assert findings(answer) == {}, answer.stdout
    assert {"stripe", "endpoint", "silence", "reconcile"} <= {one["check"] for one in answer.json["findings"]}
    assert sum(one["check"] == "clock" for one in answer.json["findings"]) == 2


def test_a_disabled_endpoint_is_enabled_only_with_fix(asking: Dues, stripe: Stripe) -> None:
    endpoint = stripe.create_webhook_endpoint(HOOK)
    stripe.disable_failing_endpoint(endpoint.id)
    assert findings(asking("doctor", "--json")) == {"endpoint": f"Stripe has disabled {endpoint.id}"}
    assert stripe.webhook_endpoints[endpoint.id].status == "disabled"
    answer = asking("doctor", "--fix", "--json")
    assert findings(answer) == {"endpoint": f"endpoint {endpoint.id} has been enabled"}
    assert stripe.webhook_endpoints[endpoint.id].status == "enabled"
    assert asking("doctor", "--fix", "--json").code == 0


def test_fix_leaves_endpoints_of_others_alone(asking: Dues, stripe: Stripe) -> None:
    stripe.create_webhook_endpoint(HOOK)
    other = stripe.create_webhook_endpoint("https://other.example.com/webhooks/stripe")
    stripe.disable_failing_endpoint(other.id)
    assert asking("doctor", "--fix", "--json").code == 0
    assert stripe.webhook_endpoints[other.id].status == "disabled"


def test_a_key_that_stripe_refuses_is_a_finding_without_the_key(asking: Dues) -> None:
    answer = asking("doctor", "--json", STRIPE_API_KEY="sk_test_refused")
    assert findings(answer, level="problem")["stripe"].startswith("GET /v1/events: AuthenticationError 401")
    assert "sk_test_refused" not in answer.stdout


def test_a_clock_that_is_not_stripes_is_found(asking: Dues, stripe: Stripe) -> None:
    stripe.create_webhook_endpoint(HOOK)
    stripe.advance(stripe.now + 400)
    assert "behind Stripe's" in findings(asking("doctor", "--json"), level="problem")["clock"]


def test_a_reconciliation_that_is_overdue_is_found(asking: Dues, stripe: Stripe, plain: psycopg.Connection) -> None:
    stripe.create_webhook_endpoint(HOOK)
    plain.execute("UPDATE sync_runs SET started_at = now() - interval '5 hours' WHERE kind = 'reconcile'")
    assert findings(asking("doctor", "--json")) == {"reconcile": "Stripe was last asked 5 hours ago what was missed"}
    plain.execute("DELETE FROM sync_runs WHERE kind = 'reconcile'")
    assert findings(asking("doctor", "--json")) == {"reconcile": "Stripe has not been asked yet what was missed"}


def test_what_only_the_watchdog_can_tell_is_told_after_it(well: Dues, plain: psycopg.Connection) -> None:
    told = {"check": "secret", "level": "warning", "found": "number 2 is not used", "todo": "take it out"}
    plain.execute("UPDATE sync_runs SET counts = %s", [json.dumps({"findings": [told]})])
    assert findings(well("doctor", "--json")) == {"secret": "number 2 is not used"}
