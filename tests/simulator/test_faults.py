"""The API on a bad day, as Stripe's own client sees it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe as library

from simulator import faults
from simulator.api import KEY
from simulator.faults import Fault, Faults, Rule, bad_day, rate_limited, server_error, slow
from simulator.server import Server, serving
from simulator.state import Stripe

CLOCK = 1793520000


@pytest.fixture
def stripe() -> Stripe:
    stripe = Stripe(1, CLOCK)
    for number in range(5):
        stripe.create_product(f"Product {number}")
    return stripe


@pytest.fixture
def server(stripe: Stripe) -> Iterator[Server]:
    with serving(stripe) as server:
        yield server


def client_of(server: Server, *, retries: int = 0, timeout: float = 10) -> library.StripeClient:
    return library.StripeClient(
        KEY,
        max_network_retries=retries,
        http_client=library.RequestsClient(timeout=timeout),
        base_addresses={"api": server.url},
    )


def statuses(server: Server) -> list[int | None]:
    return [asked.status for asked in server.log]


def test_a_late_answer_is_right(server: Server) -> None:
    server.faults = Faults([Rule(fault=slow(0.2))])
    began = time.monotonic()
    assert len(client_of(server).v1.products.list().data) == 5
    assert time.monotonic() - began >= 0.2


def test_an_answer_that_never_comes_runs_into_the_clients_timeout(server: Server) -> None:
    server.faults = Faults([Rule(fault=faults.SILENT)])
    with pytest.raises(library.APIConnectionError, match="timed out"):
        client_of(server, timeout=0.2).v1.products.list()
    assert statuses(server) == [None]


def test_a_silent_server_can_be_stopped(stripe: Stripe) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(stripe, faults=Faults([Rule(fault=faults.SILENT)])) as server:
            asked = pool.submit(client_of(server).v1.products.list)
            while not server.log:
                time.sleep(0.01)
        with pytest.raises(library.APIConnectionError):
            asked.result(5)


@pytest.mark.parametrize("fault", [faults.RESET, faults.CUT])
def test_a_connection_that_breaks_is_an_error_of_the_connection(server: Server, fault: Fault) -> None:
    server.faults = Faults([Rule(fault=fault, times=1)])
    client = client_of(server)
    with pytest.raises(library.APIConnectionError):
        client.v1.products.list()
    assert len(client.v1.products.list().data) == 5
    assert statuses(server) == [None, 200]


def test_too_many_requests_are_refused_with_what_stripe_says_about_trying_again(server: Server) -> None:
    server.faults = Faults(
        [
            Rule(fault=rate_limited(), times=1),
            Rule(fault=rate_limited(reason="global-concurrency", should_retry=False, retry_after=3), times=1),
            Rule(fault=rate_limited(should_retry=True), times=1),
        ]
    )
    client = client_of(server, retries=2)
    with pytest.raises(library.RateLimitError) as refused:
        client.v1.products.list()
    assert refused.value.user_message == "Request rate limit exceeded."
    headers = dict(refused.value.headers or {})
    assert headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    assert {"Stripe-Should-Retry", "Retry-After"} & set(headers) == set()
    with pytest.raises(library.RateLimitError) as refused:
        client.v1.products.list()
    headers = dict(refused.value.headers or {})
    assert (headers["Stripe-Should-Retry"], headers["Retry-After"]) == ("false", "3")
    assert len(client.v1.products.list().data) == 5
    assert statuses(server) == [429, 429, 429, 200]


def test_errors_of_the_server_are_json_and_those_of_its_proxy_are_not(server: Server) -> None:
    server.faults = Faults([Rule(fault=server_error(503), times=1), Rule(fault=faults.BAD_GATEWAY, times=1)])
    client = client_of(server)
    with pytest.raises(library.APIError, match=r"An unknown error occurred\.") as broken:
        client.v1.products.list()
    assert broken.value.http_status == 503
    with pytest.raises(library.APIError, match="Invalid response body") as broken:
        client.v1.products.list()
    assert broken.value.http_status == 502


def test_a_rule_holds_for_its_routes_only(server: Server) -> None:
    server.faults = Faults([Rule(fault=server_error(), route="GET /v1/products/:id")])
    client = client_of(server)
    (id, *_) = [product.id for product in client.v1.products.list()]
    with pytest.raises(library.APIError):
        client.v1.products.retrieve(id)
    assert client.v1.prices.list().data == []
    assert server.faults.met == {0: 1}


def test_a_list_can_fail_for_good_after_its_first_page(server: Server) -> None:
    server.faults = Faults([Rule(fault=server_error(), route="GET /v1/products", next_pages=True)])
    listed = client_of(server, retries=1).v1.products.list({"limit": 2}).auto_paging_iter()
    assert [next(listed).name, next(listed).name] == ["Product 4", "Product 3"]
    with pytest.raises(library.APIError):
        next(listed)
    assert statuses(server) == [200, 500, 500]


def test_the_world_can_change_between_two_pages(stripe: Stripe, server: Server) -> None:
    asked: list[str] = []

    def change(route: str) -> None:
        asked.append(route)
        if len(asked) == 1:
            stripe.delete_product(next(id for id, product in stripe.products.items() if product.name == "Product 2"))
            stripe.create_product("New")

    server.on_next_page = change
    names = [product.name for product in client_of(server).v1.products.list({"limit": 2}).auto_paging_iter()]
    assert names == ["Product 4", "Product 3", "Product 1", "Product 0"]
    assert asked == ["GET /v1/products"]


def test_above_its_rate_the_api_refuses(server: Server) -> None:
    server.faults = Faults(per_second=4)
    client = client_of(server)
    for _ in range(4):
        client.v1.products.list()
    with pytest.raises(library.RateLimitError) as refused:
        client.v1.products.list()
    assert dict(refused.value.headers or {})["Stripe-Rate-Limited-Reason"] == "global-rate"
    time.sleep(0.3)
    client.v1.products.list()


def drawn(seed: int, route: str = "GET /v1/products") -> list[Fault | None]:
    day = bad_day(seed)
    return [day.draw(route, "") for _ in range(400)]


def test_misfortune_repeats_itself_by_seed_and_each_kind_comes() -> None:
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(3) != drawn(3, "GET /v1/prices")
    hit = [fault for fault in drawn(3) if fault is not None]
    assert 80 < len(hit) < 160
    kinds = {(f.latency_s > 0, f.reset, f.cut, f.page is not None, f.error and f.error.status) for f in hit}
    assert len(kinds) == 6


def test_what_happens_on_a_route_does_not_depend_on_the_others() -> None:
    alone, among = bad_day(3), bad_day(3)
    first = [alone.draw("GET /v1/products", "") for _ in range(50)]
    second = [(among.draw("GET /v1/prices", ""), among.draw("GET /v1/products", ""))[1] for _ in range(50)]
    assert first == second
