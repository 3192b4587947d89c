"""A handful of what `make prove` does by the thousand, and that its comparison would notice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import new_database
from tests.convergence.compare import judge
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
