"""The receiver in its own process, given what no Stripe sends: never a 500, never silence, and the next is taken."""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.embedded import EmbeddedValkey
from tests.conftest import new_database, scratch_folder
from tests.fuzz.mutations import WRONGS
from tests.ingest.serving import URL, Receiver, event, receiver, settings_of, signed
from tests.workers.world import FIXTURES, World, world

# In every run a few, always the same; under `make fuzz` many.
IS_THOROUGH = settings.get_current_profile_name() == "thorough"
fuzz = settings(
    max_examples=2000 if IS_THOROUGH else 40,
    derandomize=not IS_THOROUGH,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = itertools.count()
PAYLOADS = [path.read_bytes() for path in sorted(FIXTURES.glob("*.json"))]
PIECES = [json.dumps(wrong).encode() for wrong in WRONGS.values() if not isinstance(wrong, type)]


@pytest.fixture(scope="module")
def url(postgres_url: str, template_database: str) -> Iterator[str]:
    with new_database(postgres_url, template_database) as one:
        yield one


@pytest.fixture(scope="module")
def served(url: str) -> Iterator[Receiver]:
    with (
        EmbeddedValkey(scratch_folder(), throwaway=True) as valkey,
        receiver(settings_of(url, valkey.redis_url)) as one,
    ):
        yield one


@pytest.fixture(scope="module")
def here(url: str) -> Iterator[World]:
    with world(url) as one:
        yield one


def say(served: Receiver, request: bytes) -> bytes:
    """What is answered to bytes after which nothing more comes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass  # it hung up on us, which is an answer
    return answer


def statuses(answer: bytes) -> set[int]:
    return {int(code) for code in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", answer)}


header_names = st.sampled_from(
    ["Content-Length", "Transfer-Encoding", "Content-Encoding", "Content-Type", "Stripe-Signature", "Host", "Expect"]
) | st.text(st.characters(codec="latin-1", exclude_characters="\r\n:"), min_size=1, max_size=20)
header_values = st.sampled_from(
    ["0", "-1", "5", "99999999999999999999", "chunked", "chunked, chunked", "gzip", "100-continue", "t=1,v1=00", ""]
) | st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40)


@fuzz
@given(st.binary(max_size=400))
def test_bytes_that_are_no_request_are_refused_or_hung_up_on(served: Receiver, request: bytes) -> None:
    assert statuses(say(served, request)) <= set(range(400, 500)) | {505}
    assert served.post(event(f"evt_{next(numbers)}")).status == 200


@fuzz
@given(st.lists(st.tuples(header_names, header_values), max_size=6), st.booleans())
def test_no_headers_around_a_signed_event_make_it_fail(
    served: Receiver, headers: list[tuple[str, str]], is_signed: bool
) -> None:
    body = event(f"evt_{next(numbers)}")
    mine = [*headers, *([*signed(body).items(), ("Content-Length", str(len(body)))] if is_signed else [])]
    lines = "".join(f"{name}: {value}\r\n" for name, value in mine)
    answer = say(served, f"POST {URL} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body)
    assert 500 not in statuses(answer), answer
    assert served.post(event(f"evt_{next(numbers)}")).status == 200


@fuzz
@given(
    st.lists(
        st.tuples(st.sampled_from(PAYLOADS), st.integers(0), st.integers(0, 30), st.sampled_from(PIECES)),
        min_size=1,
        max_size=20,
    )
)
def test_signed_events_with_torn_bytes_are_refused_or_stored_and_end(
    served: Receiver, here: World, torn: list[tuple[bytes, int, int, bytes]]
) -> None:
    for payload, place, length, piece in torn:
        body = payload.replace(b'"evt_', b'"evt_%d_' % next(numbers), 1)
        at = place % len(body)
        assert served.post(body[:at] + piece + body[at + length :]).status in {200, 400}
    good = f"evt_good_{next(numbers)}"
    assert served.post(event(good, type="topup.created")).status == 200
    while here.road.process("live"):
        pass
    assert here.one("SELECT status FROM stripe_events WHERE id = :id", id=good).status == "ignored"
    wrong = here.execute(
        "SELECT id, status, reason, error FROM stripe_events"
        " WHERE status NOT IN ('processed', 'ignored') AND (status, reason) <> ('dead', 'malformed')"
    )
    assert wrong == []
