"""`dues simulate`: the practice Stripe by hand, with this development's receiver and secret."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.ops.command_line import Dues
from tests.simulator.test_delivery import SECRET, Endpoint, always_200
from tests.support import free_port


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint(always_200)
    yield endpoint
    endpoint.stop()


def test_it_delivers_signed_as_the_settings_say(bare: Dues, endpoint: Endpoint) -> None:
    arguments = ("simulate", "--once", "--port", "0", "--months", "1", "--url", endpoint.url)
    report = bare.fine(*arguments, "--json", STRIPE_WEBHOOK_SECRET=f"{SECRET},whsec_other").json
    assert report["delivery"]["accepted"] == report["events"] == len(endpoint.accepted) > 0
    refused = bare(*arguments, "--secret", "whsec_wrong", "--months", "0", STRIPE_WEBHOOK_SECRET=SECRET)
    assert refused.code == 1
    assert "400 ×" in refused.stdout
    assert "This repeats it: --seed 1 --clock " in refused.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        ([], {}, "STRIPE_WEBHOOK_SECRET"),
        (["--secret", "whsec_x", "--url", "ftp://x", "--port", "0"], {}, "cannot post to 'ftp://x'"),
        (["--secret", "whsec_x", "--drops", "7"], {}, "expected a share from 0 to 1"),
        (["--secret", "whsec_x", "--seed", "x"], {}, "invalid literal"),
    ],
)
def test_what_can_not_be_is_said_and_nothing_is_started(
    bare: Dues, arguments: list[str], environment: dict[str, str], told: str
) -> None:
    answer = bare("simulate", "--once", "--months", "0", *arguments, **environment)
    assert answer.code == 2
    assert told in answer.stderr


def test_it_refuses_in_production(bare: Dues) -> None:
    answer = bare(
        "simulate", "--once", DUES_ENV="production", DATABASE_URL="postgresql://u:p@db.example.com/x?sslmode=verify-full",
        REDIS_URL="rediss://cache.example.com", STRIPE_WEBHOOK_SECRET="whsec_0123456789abcdef0123456789abcdef",
    )  # fmt: skip
    assert answer.code == 2
    assert "refuses in production" in answer.stderr


def test_a_port_that_is_taken_is_said(bare: Dues) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        answer = bare("simulate", "--once", "--secret", SECRET, "--port", str(port))
    assert answer.code == 2
    assert "is taken by another process" in answer.stderr
