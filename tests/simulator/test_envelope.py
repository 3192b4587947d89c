import json
from pathlib import Path
from typing import Any

import pytest

from simulator.envelope import body_of, envelope
from simulator.versions import ACACIA, ENDIVE

EVENTS = Path(__file__).parents[1] / "fixtures" / "events"
NAMES = sorted(path.stem for path in EVENTS.glob("*.json"))


def fixture(name: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))
    return event


def test_an_envelope_has_the_keys_of_a_sample_in_their_order() -> None:
    sample = fixture("invoice.paid")
    made = envelope(sample["data"]["object"], "invoice.paid", sample["created"], id=sample["id"])
    assert made == sample
    assert list(made) == list(sample)


def test_equal_calls_give_equal_events_and_different_calls_different_ids() -> None:
    customer = {"id": "cus_1", "object": "customer", "livemode": True}
    first = envelope(customer, "customer.created", 1)
    assert first == envelope(customer, "customer.created", 1)
    assert first["id"] != envelope(customer, "customer.created", 2)["id"]
    assert first["livemode"] is True


def test_previous_attributes_are_there_only_when_given() -> None:
    customer = {"id": "cus_1", "object": "customer"}
    assert "previous_attributes" not in envelope(customer, "customer.deleted", 1)["data"]
    updated = envelope(customer, "customer.updated", 1, previous_attributes={})
    assert updated["data"]["previous_attributes"] == {}


def test_the_body_is_utf_8_json_indented_by_two_spaces() -> None:
    event = envelope({"id": "cus_1", "object": "customer", "name": "Ångström"}, "customer.created", 1)
    assert json.loads(body_of(event)) == event
    assert b'\n  "object": "event",\n' in body_of(event)
    assert "Ångström".encode() in body_of(event)


@pytest.mark.parametrize("name", NAMES)
def test_each_fixture_is_one_whole_event_of_the_type_in_its_name(name: str) -> None:
    event = fixture(name)
    type_ = name.partition("__")[0]
    assert event["type"] == type_
    if event["type"].startswith("v1."):
        assert event["object"] == "v2.core.event"
        return
    assert set(envelope({}, "", 0)) - set(event) == set()
    assert event["api_version"] == (ACACIA if name.endswith("old_api_version") else ENDIVE)
    assert ("previous_attributes" in event["data"]) == type_.endswith(".updated")
    assert event["type"].startswith((event["data"]["object"]["object"], "customer.", "charge.", "refund."))


def test_no_two_fixtures_share_an_event_id_except_a_change_and_its_thin_twin() -> None:
    ids = [fixture(name)["id"] for name in NAMES]
    assert len(ids) == len(set(ids))
