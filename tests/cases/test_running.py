"""Of the runner itself: what it says, how it ends, and that it does not pass what it did not check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cases.__main__ import main
from tests.cases.loading import UnreadableError, read_file, read_time, with_defaults

FOLDER = Path(__file__).parent

CASE: dict[str, Any] = {
    "name": "An active subscription makes its user PREMIUM.",
    "why": "row 1",
    "now": "2026-02-15T00:00:00Z",
    "facts": {
        "users": [{"id": "u1"}],
        "customers": [{"id": "cus_1", "metadata": {"user_id": "u1"}}],
        "subscriptions": [{"id": "sub_1", "stripe_customer_id": "cus_1", "status": "active"}],
    },
    "expect": {"users": {"u1": {"role": "PREMIUM", "membership_status": "ACTIVE"}}},
}


def _run(folder: Path, *cases: object, options: tuple[str, ...] = ("--road", "pure")) -> int:
    (folder / "some.json").write_text(json.dumps(list(cases)))
    return main([str(folder), *options])


def test_all_cases_of_the_contract_hold_on_the_pure_road(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FOLDER), "--road", "pure", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["roads"]["pure"]["failures"] == []
    assert report["roads"]["pure"]["answers_checked"] > 0


def test_a_wrong_answer_is_a_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {**CASE, "expect": {"users": {"u1": {"role": "USER", "grace_until": "2026-03-01T00:00:00Z"}}}}
    assert _run(tmp_path, CASE, wrong) == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert line == (
        "FAILED pure · some.json · An active subscription makes its user PREMIUM. "
        "at 2026-02-15T00:00:00Z u1 role: expected USER, got PREMIUM; "
        "at 2026-02-15T00:00:00Z u1 grace_until: expected 2026-03-01T00:00:00Z, got null"
    )
    assert summary.startswith("pure: 1 cases passed, 1 failed,")


def test_an_answer_about_somebody_who_is_not_there_fails(tmp_path: Path) -> None:
    assert _run(tmp_path, {**CASE, "expect": {"users": {"u2": {"role": "USER"}}}}) == 1
    assert _run(tmp_path, {**CASE, "expect": {"links": {"cus_2": {"user_id": None}}}}) == 1


def test_every_road_is_taken_if_none_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    postgres_url: str,
) -> None:
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    wrong = {**CASE, "name": "Wrong.", "expect": {"links": {"cus_1": {"user_id": "u2"}}}}
    assert _run(tmp_path, CASE, wrong, options=("--seed", "7")) == 1
    ends = "at 2026-02-15T00:00:00Z cus_1 user_id: expected u2, got u1"
    roads, lines = ("pure", "rows", "shuffled"), capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"FAILED {road} · some.json · Wrong. {ends}" for road in roads]
    assert [line.split(",")[0] for line in lines[3:]] == [f"{road}: 1 cases passed" for road in roads]


def test_what_no_road_answers_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path, {**CASE, "expect": {"users": {"u1": {"mood": "good"}}}}) == 1
    assert "u1 mood: expected good, got no answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": {"u1": {"tokens": 1}}},
        {"users": {"u1": {"tokens_expires_at": "2026-03-01T00:00:00Z"}}},
        {"grants": [{"source": "il_1", "amount": 1, "expires_at": None}]},
        {"waiting": ["il_1"]},
    ],
)
def test_tokens_are_asked_of_the_pure_road_too(tmp_path: Path, wrong: dict[str, Any]) -> None:
    right = {"users": {"u1": {"tokens": 0, "tokens_expires_at": None}}, "grants": [], "waiting": []}
    assert _run(tmp_path, {**CASE, "expect": right}) == 0
    assert _run(tmp_path, {**CASE, "expect": wrong}) == 1


def test_a_case_that_expects_nothing_is_counted_and_not_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path, {**CASE, "expect": {}}) == 0
    assert capsys.readouterr().out == "pure: 0 cases passed, 0 failed, 1 expected nothing; 0 answers checked\n"


def test_a_case_that_breaks_the_road_fails_and_the_rest_still_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = {**CASE, "facts": {**CASE["facts"], "subscriptions": [{"id": "sub_1", "status": []}]}}
    assert _run(tmp_path, broken, CASE, options=("--road", "pure", "--json")) == 1
    pure = json.loads(capsys.readouterr().out)["roads"]["pure"]
    assert (pure["passed"], pure["failed"]) == (1, 1)


@pytest.mark.parametrize(
    "cases",
    [
        {},
        [7],
        [{**CASE, "now": "2026-02-15T00:00:00"}],
        [{**CASE, "now": None}],
        [{key: value for key, value in CASE.items() if key != "now"}],
        [{**CASE, "facts": {"planets": []}}],
        [{**CASE, "facts": {"users": [{"id": "u1", "mood": "good"}]}}],
        [{**CASE, "facts": {"users": [{}]}}],
        [{**CASE, "facts": {"users": 7}}],
        [{**CASE, "expect": {"moods": {}}}],
        [{**CASE, "settings": {"DUES_MOOD": "good"}}],
    ],
)
def test_what_is_not_a_case_is_refused(cases: object, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(cases))
    with pytest.raises(UnreadableError, match=r"bad\.json"):
        read_file(file)


def test_what_cannot_be_read_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "missing.json")]) == 2
    (tmp_path / "cut.json").write_text("[{")
    assert main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_columns_left_out_have_the_defaults_of_the_format() -> None:
    invoice = with_defaults("invoices", {"id": "in_1", "lines": [{"amount": 900}, {"amount": -200}]})
    assert (invoice["status"], invoice["total"], invoice["amount_paid"]) == ("paid", 700, 700)
    assert invoice["paid_at"] == invoice["finalized_at"] == read_time("2026-01-01T00:00:00Z")
    assert with_defaults("invoices", {"id": "in_1", "lines": [{"amount": -200}]})["total"] == 0
    assert with_defaults("users", {"id": "u1"})["email"] == "u1@example.com"
    assert with_defaults("users", {"id": "u1", "email": None})["email"] is None
    assert with_defaults("payment_intents", {"id": "pi_1", "amount": 5})["amount_received"] == 5
