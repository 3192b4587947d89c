"""What waits for a person is found, and nothing else is."""

from __future__ import annotations

import json

import psycopg
import pytest
from sqlalchemy import Engine

from models import attention
from workers import entitlements, tokens

NOTHING = attention.Cases(0, ())


def found(engine: Engine, name: str) -> tuple[str, ...]:
    with engine.connect() as connection:
        return attention.look(connection, name).ids


@pytest.mark.parametrize("name", attention.LOOKS)
def test_in_an_empty_database_nothing_waits(engine: Engine, name: str) -> None:
    with engine.connect() as connection:
        assert attention.look(connection, name) == NOTHING


def test_the_first_are_shown_and_all_are_counted(engine: Engine, site: psycopg.Connection) -> None:
    for number in range(7):
        site.execute("INSERT INTO stripe_events (id, type, status) VALUES (%s, 't', 'dead')", [f"evt_{number}"])
    with engine.connect() as connection:
        cases = attention.look(connection, "dead")
    assert cases == attention.Cases(7, ("evt_0", "evt_1", "evt_2", "evt_3", "evt_4"))


def test_an_orphan_waits_once_it_has_paid_and_until_it_is_linked(engine: Engine, site: psycopg.Connection) -> None:
    site.execute("INSERT INTO stripe_customers (id, created) VALUES ('cus_1', now()), ('cus_2', now())")
    assert found(engine, "orphans") == ()
    site.execute(
        "INSERT INTO user_subscriptions (id, stripe_customer_id, status) VALUES ('sub_1', 'cus_1', 'active'),"
        " ('sub_2', 'cus_2', 'canceled')"
    )
    assert found(engine, "orphans") == ("cus_1",)
    site.execute("INSERT INTO payment_history (id, stripe_customer_id, status) VALUES ('pi_1', 'cus_2', 'succeeded')")
    assert found(engine, "orphans") == ("cus_1", "cus_2")
    site.execute("UPDATE stripe_customers SET linked_by = 'hand' WHERE id = 'cus_1'")
    site.execute("INSERT INTO users (id) VALUES ('u')")
    site.execute("UPDATE stripe_customers SET user_id = 'u' WHERE id = 'cus_2'")
    assert found(engine, "orphans") == ()


def test_evidence_for_two_users_conflicts_until_a_person_decides(engine: Engine, site: psycopg.Connection) -> None:
    site.execute("INSERT INTO users (id) VALUES ('a'), ('b')")
    site.execute(
        "INSERT INTO stripe_customers (id, metadata) VALUES ('cus_1', '{\"user_id\": \"a\"}'), ('cus_2', '{}')"
    )
    site.execute(
        "INSERT INTO stripe_checkout_sessions (id, stripe_customer_id, client_reference_id, payment_link) VALUES"
        " ('cs_1', 'cus_1', 'b', 'plink_1'), ('cs_2', 'cus_1', 'nobody', NULL), ('cs_a', NULL, 'a', NULL),"
        " ('cs_b', NULL, 'b', NULL), ('cs_3', 'cus_2', 'b', NULL)"
    )
    assert found(engine, "conflicts") == ()
    site.execute("UPDATE stripe_checkout_sessions SET payment_link = NULL WHERE id = 'cs_1'")
    assert found(engine, "conflicts") == ("cus_1",)
    site.execute("INSERT INTO customer_links (stripe_customer_id, user_id, author) VALUES ('cus_1', 'b', 'ada')")
    assert found(engine, "conflicts") == ()


def test_a_role_written_directly_waits_until_its_override_ends(engine: Engine, site: psycopg.Connection) -> None:
    site.execute("INSERT INTO users (id) VALUES ('a'), ('b')")
    site.execute("UPDATE users SET role = 'PREMIUM' WHERE id = 'a'")
    site.execute("INSERT INTO user_overrides (user_id, kind, role, author) VALUES ('b', 'comp', 'PREMIUM', 'ada')")
    assert found(engine, "overrides") == ("a",)
    site.execute("UPDATE user_overrides SET ended_at = now() WHERE user_id = 'a'")
    assert found(engine, "overrides") == ()


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ("status = status", True),
        ("payment_status = 'no_payment_required', payment_intent_id = NULL", True),
        ("line_items = '[]'", False),
        ('metadata = \'{"tokens": "5"}\'', False),
        ("status = 'open'", False),
        ("mode = 'subscription'", False),
        ("payment_intent_id = 'pi_2'", False),
        ("payment_intent_id = 'pi_3'", False),
    ],
)
def test_a_purchase_waits_while_only_its_line_items_can_name_the_tokens(
    engine: Engine, site: psycopg.Connection, changes: str, waits: bool
) -> None:
    site.execute(
        "INSERT INTO payment_history (id, status, metadata) VALUES ('pi_1', 'succeeded', '{}'),"
        " ('pi_2', 'succeeded', '{\"tokens\": \"5\"}'), ('pi_3', 'processing', '{}')"
    )
    site.execute(
        "INSERT INTO stripe_checkout_sessions (id, mode, status, payment_status, payment_intent_id)"
        " VALUES ('cs_1', 'payment', 'complete', 'paid', 'pi_1')"
    )
    site.execute(f"UPDATE stripe_checkout_sessions SET {changes}".encode())
    assert found(engine, "purchases") == (("cs_1",) if waits else ())


def test_contested_rows_of_every_table_are_found(engine: Engine, site: psycopg.Connection) -> None:
    site.execute("INSERT INTO stripe_refunds (id, contested) VALUES ('re_1', true), ('re_2', false)")
    site.execute("INSERT INTO stripe_products (id, contested) VALUES ('prod_1', true)")
    assert found(engine, "contested") == ("prod_1", "re_1")


VALUES = ("", "x", "PREMIUM", "USER", "ADMIN", "5", "-5", "007", "٥", "1e3", " 5", "5\n", "9999", "36500", "36501",
          "99999", "1000000000", "1000000001", "reset", "rollover", "Reset")  # fmt: skip


def is_understood(key: str, value: str) -> bool:
    """Whether the pure functions take a value for what it says."""
    said = {key: value}
    if key == "role":
        return entitlements.role_of({"role": value}) == value
    if key == "rank":
        return bool(entitlements._INTEGER.fullmatch(value))
    if key == "grace_days":
        subscription = entitlements.Subscription(id="s", status="past_due", product_metadata=said)
        return entitlements.grace_days_of(subscription, -1) != -1
    if key == "tokens_policy":
        return value in {"reset", "rollover"}
    return tokens._number(value, tokens.MAX_FIGURE) is not None


@pytest.mark.parametrize("key", attention.WELL_FORMED)
def test_metadata_is_malformed_exactly_when_the_rules_do_not_understand_it(
    engine: Engine, site: psycopg.Connection, key: str
) -> None:
    for number, value in enumerate(VALUES):
        site.execute(
            "INSERT INTO stripe_products (id, metadata) VALUES (%s, %s)", [f"p{number:02}", json.dumps({key: value})]
        )
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(attention._LOOKS["metadata"]).scalars()
        malformed = {VALUES[int(row.split()[0][1:])] for row in rows}
    assert malformed == {value for value in VALUES if not is_understood(key, value)}


def test_decisions_and_events_wait_once_they_are_minutes_late(engine: Engine, site: psycopg.Connection) -> None:
    site.execute("INSERT INTO users (id, next_change_at) VALUES ('a', now() - interval '6 minutes'), ('b', now())")
    site.execute(
        "INSERT INTO stripe_events (id, type, due_at) VALUES ('evt_1', 't', now() - interval '6 minutes'),"
        " ('evt_2', 't', now())"
    )
    assert (found(engine, "undecided"), found(engine, "waiting")) == (("a",), ("evt_1",))
