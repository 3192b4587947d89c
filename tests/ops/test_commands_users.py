"""`dues users` and `dues setup-admin`: a person with everything that is known, and an administrator at once."""

from __future__ import annotations

import re
import threading

import psycopg
import pytest

from models.database import connect
from models.settings import read_settings
from ops.console import operator
from ops.people import set_up_admin
from tests.ops.command_line import Answer, Dues
from tests.support import eventually
from workers.link import link

# Ada has two customers, a subscription, a comp that has run out, a link by hand and a change; others have things too.
ADA = """
    INSERT INTO users (id, email, name) VALUES ('c1', 'Ada@example.com', 'Ada'), ('c2', 'bob@example.com', 'Bob');
    INSERT INTO stripe_products (id, name) VALUES ('prod_1', 'Pro');
    INSERT INTO stripe_customers (id, user_id, alias_of, linked_by, created) VALUES
        ('cus_1', 'c1', NULL, 'customer_metadata', '2026-01-01Z'), ('cus_other', NULL, NULL, NULL, NULL),
        ('cus_2', NULL, 'cus_1', 'email', NULL);
    INSERT INTO user_subscriptions (id, user_id, stripe_customer_id, stripe_product_id, status) VALUES
        ('sub_1', 'c1', 'cus_2', 'prod_1', 'active'), ('sub_2', NULL, 'cus_other', NULL, 'active');
    INSERT INTO user_overrides (user_id, kind, role, author, reason, expires_at) VALUES
        ('c1', 'comp', 'PREMIUM', 'eve', 'a prize', '2020-01-01Z'), ('c2', 'pause', NULL, 'eve', NULL, NULL);
    INSERT INTO customer_links (stripe_customer_id, user_id, author) VALUES ('cus_2', 'c1', 'eve');
    INSERT INTO membership_changes (user_id, role_from, role_to, status_from, status_to, reasons, event_id) VALUES
        ('c1', 'USER', 'PREMIUM', 'INACTIVE', 'INACTIVE', '["sub_1 is active."]', 'evt_1');
"""


@pytest.mark.parametrize("who", ["c1", "ada@EXAMPLE.com"])
def test_everything_known_of_a_person_is_shown(dues: Dues, plain: psycopg.Connection, who: str) -> None:
    plain.execute(ADA)
    told = dues.fine("users", "show", who, "--json").json
    assert (told["id"], told["email"], told["role"], told["tokens"]) == ("c1", "Ada@example.com", "USER", 0)
    assert [(one["id"], one["is_primary"], one["linked_by"]) for one in told["customers"]] == [
        ("cus_1", True, "customer_metadata"),
        ("cus_2", False, "email"),
    ]
    assert [(one["id"], one["product_name"], one["status"]) for one in told["subscriptions"]] == [
        ("sub_1", "Pro", "active")
    ]
    assert [(one["kind"], one["author"], one["is_running"]) for one in told["overrides"]] == [("comp", "eve", False)]
    assert [one["stripe_customer_id"] for one in told["links_by_hand"]] == ["cus_2"]
    assert [(one["role_to"], one["reasons"], one["event_id"]) for one in told["changes"]] == [
        ("PREMIUM", ["sub_1 is active."], "evt_1")
    ]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told["created_at"])


def test_people_get_the_same_to_read(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute(ADA)
    shown = dues.fine("users", "show", "c1").stdout
    for line in (
        r"^email +Ada@example\.com$",
        r"^  cus_2 +no +email +– +– +–$",
        r"^  sub_1 +active +Pro ",
        r"^  comp +no +eve +a prize ",
        r"^    role USER → PREMIUM$",
        r"^    sub_1 is active\.$",
    ):
        assert re.search(line, shown, re.MULTILINE), (line, shown)
    assert "links by hand: none" in dues.fine("users", "show", "c2").stdout


def test_a_ban_by_address_is_shown_with_who_has_the_address_now(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute("INSERT INTO users (id, email) VALUES ('c1', 'ada@example.com'), ('c2', 'bob@example.com')")
    plain.execute("INSERT INTO user_overrides (user_id, kind, author) VALUES ('c1', 'ban', 'eve')")
    plain.execute("DELETE FROM users WHERE id = 'c1'")
    plain.execute("INSERT INTO users (id, email) VALUES ('c3', 'Ada@example.com')")
    told = dues.fine("users", "show", "c3", "--json").json
    assert [(one["kind"], one["is_running"]) for one in told["overrides"]] == [("ban", True)]
    assert dues.fine("users", "show", "c2", "--json").json["overrides"] == []


def test_nobody_is_a_failure(dues: Dues) -> None:
    answer = dues("users", "show", "nobody@example.com")
    assert (answer.code, answer.stderr) == (2, "Error: There is no user 'nobody@example.com'.\n")


# --- link and unlink ----------------------------------------------------------------------------------------------

# A customer with a subscription and a paid invoice; its e-mail, which nobody has verified, is Ada's.
ORPHAN = """
    INSERT INTO users (id, email) VALUES ('c1', 'Ada@example.com'), ('c2', 'bob@example.com');
    INSERT INTO stripe_products (id, name, metadata, source) VALUES ('prod_1', 'Pro', '{"tokens": "500"}', 'evt_1');
    INSERT INTO stripe_prices (id, stripe_product_id, unit_amount, source) VALUES ('price_1', 'prod_1', 900, 'evt_1');
    INSERT INTO stripe_customers (id, email, created, source) VALUES
        ('cus_1', 'ada@example.com', '2026-01-01Z', 'evt_1');
    INSERT INTO user_subscriptions (id, stripe_customer_id, stripe_product_id, stripe_price_id, status, source) VALUES
        ('sub_1', 'cus_1', 'prod_1', 'price_1', 'active', 'evt_1');
    INSERT INTO stripe_invoices (id, stripe_customer_id, stripe_subscription_id, status, created, paid_at, total,
        amount_paid, lines, lines_complete, source)
    SELECT 'in_1', 'cus_1', 'sub_1', 'paid', now(), now(), 900, 900, jsonb_build_array(jsonb_build_object('id', 'il_1',
        'amount', 900, 'quantity', 1, 'price', 'price_1', 'product', 'prod_1', 'subscription_item', 'si_1', 'proration',
        false, 'period', jsonb_build_object('start', now(), 'end', now() + interval '30 days'))), true, 'evt_1';
"""


def standing(dues: Dues, who: str) -> tuple[str, int]:
    told = dues.fine("users", "show", who, "--json").json
    return told["role"], told["tokens"]


def test_an_orphan_linked_by_hand_counts_at_once_and_unlinked_no_more(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute(ORPHAN)
    done = dues.fine("users", "link", "cus_1", "ada@EXAMPLE.com", "--reason", "wrote to us", "--json").json
    assert done == {"stripe_customer_id": "cus_1", "user_id": "c1", "alias_of": None, "is_known": True}
    assert standing(dues, "c1") == ("PREMIUM", 500)
    assert dues.fine("users", "unlink", "cus_1").stdout == "cus_1 is nobody’s.\n"
    assert standing(dues, "c1") == ("USER", 0)
    kept = plain.execute("SELECT user_id, author, reason FROM customer_links ORDER BY id").fetchall()
    assert kept == [("c1", operator(), "wrote to us"), (None, operator(), None)]


def test_a_decision_by_hand_goes_before_the_evidence(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute(ORPHAN)
    plain.execute("""UPDATE stripe_customers SET metadata = '{"user_id": "c1"}'""")
    assert dues.fine("users", "link", "cus_1", "c2").stdout == "cus_1 is user c2’s.\n"
    assert (standing(dues, "c1"), standing(dues, "c2")) == (("USER", 0), ("PREMIUM", 500))


def test_a_further_customer_becomes_an_alias_of_the_first(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute(ORPHAN)
    plain.execute(
        "INSERT INTO stripe_customers (id, created, metadata, source)"
        """ VALUES ('cus_0', '2025-01-01Z', '{"user_id": "c1"}', 'evt_1')"""
    )
    assert dues.fine("users", "link", "cus_1", "c1").stdout == "cus_1 is user c1’s (an alias of cus_0).\n"


def test_a_customer_not_heard_of_yet_is_linked_when_it_is(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute("INSERT INTO users (id, email) VALUES ('c1', 'ada@example.com')")
    assert "as soon as Stripe tells of cus_9" in dues.fine("users", "link", "cus_9", "c1").stdout
    assert dues.fine("users", "link", "cus_9", "c1", "--json").json["is_known"] is False
    plain.execute("INSERT INTO stripe_customers (id, source) VALUES ('cus_9', 'evt_1')")
    engine = connect(read_settings(dues.environment), application="test")
    link(engine, read_settings(dues.environment), customers=["cus_9"])
    engine.dispose()
    assert plain.execute("SELECT user_id, linked_by FROM stripe_customers").fetchone() == ("c1", "hand")


@pytest.mark.parametrize(("customer", "who"), [("cus_1", "nobody"), ("", "c1"), ("a\n", "c1"), ("x" * 256, "c1")])
def test_a_link_that_names_nobody_is_not_kept(dues: Dues, plain: psycopg.Connection, customer: str, who: str) -> None:
    plain.execute("INSERT INTO users (id, email) VALUES ('c1', 'ada@example.com')")
    answer = dues("users", "link", customer, who)
    assert answer.code == 2
    assert re.match("Error: (There is no user|.* is no id of a customer)", answer.stderr)
    assert plain.execute("SELECT FROM customer_links").rowcount == 0


# --- setup-admin --------------------------------------------------------------------------------------------------


def test_a_new_administrator_is_one_at_once(dues: Dues) -> None:
    made = dues.fine("setup-admin", "Ada@Example.com", "--json").json
    assert re.fullmatch(r"c[a-z0-9]{24}", made["id"])
    assert (made["email"], made["role"], made["created"], made["promoted"]) == ("ada@example.com", "ADMIN", True, True)
    told = dues.fine("users", "show", "ada@example.com", "--json").json
    assert (told["role"], told["next_change_at"]) == ("ADMIN", None)
    assert [(one["kind"], one["author"], one["ended_at"]) for one in told["overrides"]] == [("admin", operator(), None)]
    assert told["changes"][0]["role_to"] == "ADMIN"


def test_doing_it_again_changes_nothing(dues: Dues, plain: psycopg.Connection) -> None:
    dues.fine("setup-admin", "ada@example.com")
    before = dues.fine("users", "show", "ada@example.com").stdout
    again = dues.fine("setup-admin", "ADA@example.com", "--json").json
    assert (again["role"], again["created"], again["promoted"]) == ("ADMIN", False, False)
    assert "nothing to do" in dues.fine("setup-admin", "ada@example.com").stdout
    assert dues.fine("users", "show", "ada@example.com").stdout == before
    assert plain.execute("SELECT FROM user_overrides").rowcount == 1


def test_somebody_who_is_there_already_is_promoted(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute("INSERT INTO users (id, email) VALUES ('c1', 'Ada@Example.com')")
    plain.execute(
        "INSERT INTO user_overrides (user_id, kind, author, ended_at, expires_at) VALUES"
        " ('c1', 'admin', 'eve', now(), NULL), ('c1', 'admin', 'eve', NULL, now() + interval '1 day')"
    )
    done = dues.fine("setup-admin", "ada@example.com", "--json").json
    assert (done["id"], done["role"], done["created"], done["promoted"]) == ("c1", "ADMIN", False, True)
    assert plain.execute("SELECT count(*) FROM users").fetchone() == (1,)


def test_several_at_once_make_one_administrator(dues: Dues, plain: psycopg.Connection, database_url: str) -> None:
    plain.execute("INSERT INTO users (id, email) VALUES ('c1', 'ada@example.com')")
    engine = connect(read_settings(dues.environment), application="test")

    def set_up(email: str) -> None:
        set_up_admin(engine, read_settings(dues.environment), email, author="eve")

    threads = [threading.Thread(target=set_up, args=[email]) for email in ["ada@example.com", "bob@example.com"] * 2]
    with psycopg.connect(database_url) as blocker:
        blocker.execute("SELECT FROM users FOR UPDATE")
        for thread in threads:
            thread.start()
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        eventually(lambda: plain.execute(waiting).rowcount >= 2)
    for thread in threads:
        thread.join()
    engine.dispose()
    assert plain.execute("SELECT email, role::text FROM users ORDER BY email").fetchall() == [
        ("ada@example.com", "ADMIN"),
        ("bob@example.com", "ADMIN"),
    ]
    assert plain.execute("SELECT kind FROM user_overrides").fetchall() == [("admin",), ("admin",)]


def test_a_ban_is_stronger_and_that_is_said(dues: Dues, plain: psycopg.Connection) -> None:
    plain.execute("INSERT INTO users (id, email) VALUES ('c1', 'ada@example.com')")
    plain.execute("INSERT INTO user_overrides (user_id, kind, author) VALUES ('c1', 'ban', 'eve')")
    answer = dues("setup-admin", "ada@example.com")
    assert answer.code == 1
    assert "a ban is stronger" in answer.stderr


def test_shadow_mode_keeps_the_role_and_that_is_said(dues: Dues) -> None:
    answer: Answer = dues("setup-admin", "ada@example.com", DUES_SHADOW="1")
    assert answer.code == 1
    assert "DUES_SHADOW keeps Dues from writing roles" in answer.stderr


@pytest.mark.parametrize("email", ["ada", "ada@", "a da@example.com", "ada@example.com\n", "a" * 300 + "@example.com"])
def test_what_is_no_address_is_refused(dues: Dues, plain: psycopg.Connection, email: str) -> None:
    answer = dues("setup-admin", email)
    assert answer.code == 2
    assert "is not an e-mail address" in answer.stderr
    assert plain.execute("SELECT FROM users").rowcount == 0


def test_a_person_is_explained_in_words_and_exit_1_says_that_something_waits(
    dues: Dues, plain: psycopg.Connection
) -> None:
    plain.execute(ADA)
    answer = dues("users", "explain", "ada@example.com")
    assert answer.code == 1
    for line in (
        "c1 is USER, ACTIVE, with 0 tokens",
        "  sub_1 is active and gives PREMIUM by prod_1.",
        "  cus_1 is nobody's",
        "  comp by eve (not running): a prize",
        "tokens: none",
        "  decision: it is due and will be made within a minute",
    ):
        assert line in answer.stdout.splitlines()
    plain.execute("UPDATE users SET next_change_at = NULL, membership_status = 'INACTIVE' WHERE id = 'c2'")
    told = dues("users", "explain", "c2", "--json")
    assert (told.json["id"], told.json["decided"]["role"]) == ("c2", "USER")
    assert dues("users", "explain", "nobody").code == 2
