"""A handful of what `make prove` does by the thousand, and that its comparison would notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from simulator.api import KEY
from simulator.render import render_event
from simulator.render.thin import notification
from simulator.server import serving
from tests.conftest import new_database
from tests.convergence.compare import Naive, against_truth, judge
from tests.convergence.rounds import Round, make_round, midnight
from tests.convergence.site import Site


@pytest.fixture
def sites(postgres_url: str, template_database: str) -> Iterator[tuple[Site, Site]]:
    with (
        new_database(postgres_url, template_database) as first,
        new_database(postgres_url, template_database) as second,
    ):
        pair = Site(first), Site(second)
        yield pair
        for site in pair:
            site.engine.dispose()


def deliver(sites: tuple[Site, Site], number: int, histories: int) -> Round:
    one = make_round(-number, midnight(), histories=histories)
    sites[0].deliver_in_order(one)
    sites[1].deliver_at_random(one)
    return one


@pytest.mark.parametrize("number", [1, 2])
def test_histories_in_any_order_agree_with_the_true_one_the_simulator_and_the_naive_computation(
    sites: tuple[Site, Site], number: int
) -> None:
    one = deliver(sites, number, 3)
    verdict = judge(one, *sites)
    assert [str(difference) for difference in verdict.differences] == []
    assert verdict.rows > 50


def test_with_an_api_key_thin_events_among_the_others_end_in_the_true_rows_too(database_url: str) -> None:
    """What is fetched is the present, what is sent the past, and they overtake each other."""
    one = make_round(-4, midnight(), histories=1)
    (past,), chance = one.pasts, one.chance("thin")
    whole = ("product", "price", "plan")  # of which the past counts too: the figures in force at a payment
    events = [
        notification(told) if not told.type.startswith(whole) and chance.random() < 0.3 else render_event(told)
        for told in past.events
    ]
    with serving(past) as server:
        site = Site(database_url, STRIPE_API_KEY=KEY, STRIPE_API_BASE=server.url, DUES_STRIPE_RATE="1000")
        site.deliver_at_random(replace(one, events=events))
        rows = site.rows()
        sums = site.sums(rows["users"])
        differences = [*against_truth(one, rows), *Naive(rows, site.since, site.now()).against(rows, sums)]
        site.engine.dispose()
    assert [str(difference) for difference in differences] == []
    assert server.counts.total() > 5


def test_a_wrong_value_is_told_apart_by_each_of_the_three(sites: tuple[Site, Site]) -> None:
    one = deliver(sites, 3, 1)
    (user,) = sites[1].execute(
        "UPDATE users SET membership_status = 'PAST_DUE', role = 'USER' WHERE id ="
        " (SELECT min(user_id) FROM stripe_customers) RETURNING id"
    )
    sites[1].execute("UPDATE stripe_products SET name = 'Forged'")
    found = {(difference.between, difference.table, difference.column) for difference in judge(one, *sites).differences}
    assert {
        ("order", "stripe_products", "name"),
        ("truth", "stripe_products", "name"),
        ("order", "users", "membership_status"),
        ("naive", "users", "membership_status"),
    } <= found
    assert user.id in {difference.id for difference in judge(one, *sites).differences}
