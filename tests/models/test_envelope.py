from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.envelope import UnreadableError, read
from models.ledger import Received
from tests.support import ROOT


def body(**changes: Any) -> bytes:
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "customer.updated",
        "created": 1_793_520_000,
        "livemode": False,
        "api_version": "2026-09-30.endive",
        "data": {"object": {"id": "cus_1", "object": "customer"}},
        **changes,
    }
    return json.dumps(event).encode()


def test_a_snapshot_event_is_read() -> None:
    assert read(body(account="acct_1")) == Received(
        id="evt_1",
        type="customer.updated",
        payload=body(account="acct_1"),
        created=1_793_520_000,
        object_type="customer",
        object_id="cus_1",
        api_version="2026-09-30.endive",
        livemode=False,
        account="acct_1",
    )


def test_a_thin_event_names_its_object_and_moment_in_its_own_way() -> None:
    raw = (ROOT / "tests/fixtures/events/v1.customer.subscription.updated.json").read_bytes()
    received = read(raw)
    assert (received.object_type, received.object_id) == ("subscription", "sub_1SaAliceSub0001")
    assert (received.created, received.account, received.livemode) == (1_793_520_000, None, False)


def test_the_context_of_a_thin_event_is_its_account() -> None:
    assert read(body(object="v2.core.event", context="acct_9", account="acct_8")).account == "acct_9"


@pytest.mark.parametrize(
    "created", ["1793520000", None, True, -1, 10**15, 1.5, [], {}, float("nan"), float("inf"), "2026-11-01T08:00:00Z"]
)
def test_a_created_that_is_no_moment_becomes_null(created: Any) -> None:
    assert read(body(created=created)).created is None


@pytest.mark.parametrize("created", ["yesterday", "2026-11-01T08:00:00", "0001-01-01T00:00:00Z", 1_793_520_000, None])
def test_a_created_of_a_thin_event_that_is_no_moment_becomes_null(created: Any) -> None:
    assert read(body(object="v2.core.event", created=created)).created is None


@pytest.mark.parametrize("value", ["a\x00b", "\ud800", 7, True, [], {}, "", "x" * 256])
def test_values_that_cannot_be_stored_become_null_and_an_unreadable_account_is_not_ours(value: Any) -> None:
    received = read(
        body(api_version=value, account=value, livemode="yes", data={"object": {"id": value, "object": value}})
    )
    assert (received.object_type, received.object_id, received.api_version, received.livemode) == (None,) * 4
    assert received.account == "unreadable"


@pytest.mark.parametrize("data", [None, 1, "x", [], {}, {"object": None}, {"object": []}, {"object": "cus_1"}])
def test_a_data_that_is_no_object_names_no_object(data: Any) -> None:
    assert read(body(data=data)).object_id is None


@pytest.mark.parametrize("event_id", ["evt_\x00", "\ud83d", "evt_1\udfff"])
def test_an_id_that_cannot_be_stored_is_replaced_by_one_made_of_the_body(event_id: str) -> None:
    received = read(body(id=event_id))
    assert received.id.startswith("malformed_")
    assert received.id == read(body(id=event_id)).id != read(body(id=event_id, type="other")).id


def test_a_type_that_cannot_be_stored_loses_only_what_cannot() -> None:
    assert read(body(type="a\x00b\ud800c")).type == "a\ufffdb\ufffdc"
    assert read(body(type="t" * 1000)).type == "t" * 255


def test_whole_surrogate_pairs_are_letters_like_others() -> None:
    assert read(body(id="evt_😀")).id == "evt_😀"


DEEP = 200_000


@pytest.mark.parametrize(
    "raw",
    [
        b'{"data":' + b"[" * DEEP + b"]" * DEEP + b',"id":"evt_1","type":"t"}',
        b'{"data":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b',"id":"evt_1","type":"t"}',
        b'{"id":"evt_1","data":' + b'[{"a":' * DEEP + b'"]}"' + b"}]" * DEEP + b',"type":"t","created":5}',
        b'{"id":"evt_1","type":"t","n":' + b"9" * 5000 + b"}",
        b'{"id":"evt_1","type":"t","created":-' + b"9" * 5000 + b"}",
        b'{"id":"evt_1","type":"t","n":[NaN,Infinity,-Infinity,1e999]}',
        b'{"id":"evt_0","type":"x","id":"evt_1","type":"t"}',
        b' \r\n\t{"id":"evt_1","type":"t"}\n',
    ],
    ids=["lists", "objects", "both", "long number", "long created", "no numbers", "duplicate keys", "blanks"],
)
def test_whatever_is_a_json_object_with_id_and_type_is_taken(raw: bytes) -> None:
    received = read(raw)
    assert (received.id, received.type, received.payload) == ("evt_1", "t", raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"null", b"[]", b"{}", b"1", b'"evt_1"', b"NaN", b"true", b"\xff\xfe", b'{"id":"evt_1","type":"t"',
        b'\xef\xbb\xbf{"id":"evt_1","type":"t"}', '{"id":"evt_1","type":"t"}'.encode("utf-16"), b"\x00",
        b'{"id":"evt_1","type":"t"}{}', b'{"id":"evt_1","type":"\x00"}', b"[" * DEEP, b"[" * DEEP + b"]" * DEEP,
        b'{"id":"evt_1","type":"t","data":' + b"[" * DEEP + b"}", b'{"a":' * DEEP + b'"' + b'\\"' * 300_000,
        b'{"type":"t"}', b'{"id":null,"type":"t"}', b'{"id":1,"type":"t"}', b'{"id":"","type":"t"}',
        b'{"id":"evt_1"}', b'{"id":"evt_1","type":null}', b'{"id":"evt_1","type":["t"]}', b"9" * 5000,
        b'{"id":"' + b"x" * 256 + b'","type":"t"}',
    ],
)  # fmt: skip
def test_what_is_no_json_object_with_id_and_type_is_refused(raw: bytes) -> None:
    with pytest.raises(UnreadableError):
        read(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.dictionaries(st.sampled_from(["id", "type", "object", "created", "data", "livemode", "account"]), json_values)
)
def test_any_object_is_read_or_refused_and_what_is_read_can_be_stored(event: dict[str, Any]) -> None:
    raw = json.dumps({"id": "evt_1", "type": "t", **event}).encode()
    try:
        received = read(raw)
    except UnreadableError:
        return
    for value in (received.id, received.type, received.object_id, received.object_type, received.account):
        assert value is None or (len(value) <= 255 and "\x00" not in value and value.encode("utf-8") is not None)
