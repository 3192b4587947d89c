"""Read folders of cases: JSON in, typed rows with their defaults out.

The format is `cases/README.md`'s: facts are rows of CONTRACT §4 by its column names, times are ISO 8601 UTC.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

Row = dict[str, Any]
Rows = dict[str, list[Row]]

CREATED: Final = datetime(2026, 1, 1, tzinfo=UTC)

SETTINGS: Final[dict[str, str | int]] = {
    "DUES_GRACE_DAYS": 3,
    "DUES_LINK_BY_EMAIL": "verified",
    "DUES_TRUSTED_PROVIDERS": "google,apple,github",
}

_MIRRORED: Final = "id created as_of source deleted_at contested livemode"

# table of the cases → its columns: a row that has any other is refused, so that no fact is left aside in silence.
COLUMNS: Final[dict[str, frozenset[str]]] = {
    table: frozenset(columns.split())
    for table, columns in {
        "users": "id email name email_verified image role stripe_product_id membership_status tokens tokens_expires_at"
        " grace_until next_change_at email_changed_at",
        "accounts": "id user_id type provider provider_account_id created_at",
        "customers": f"{_MIRRORED} email name metadata",
        "products": f"{_MIRRORED} name description active default_price_id metadata",
        "prices": f"{_MIRRORED} stripe_product_id active currency type unit_amount unit_amount_decimal"
        " recurring_interval recurring_interval_count nickname lookup_key metadata",
        "metadata_history": "object_id as_of metadata",
        "subscriptions": f"{_MIRRORED} stripe_customer_id stripe_product_id stripe_price_id status quantity"
        " current_period_start current_period_end cancel_at_period_end cancel_at canceled_at ended_at trial_start"
        " trial_end latest_invoice_id items metadata",
        "invoices": f"{_MIRRORED} stripe_customer_id stripe_subscription_id status billing_reason collection_method"
        " number currency amount_due amount_paid amount_remaining total starting_balance ending_balance"
        " post_payment_credit_notes_amount attempt_count period_start period_end due_date finalized_at paid_at"
        " hosted_invoice_url lines lines_complete",
        "invoice_payments": f"{_MIRRORED} stripe_invoice_id payment_intent_id charge_id status amount_paid currency",
        "payment_intents": f"{_MIRRORED} stripe_customer_id amount amount_received currency status description"
        " failure_code failure_message metadata",
        "charges": f"{_MIRRORED} payment_intent_id stripe_customer_id status amount amount_captured amount_refunded"
        " currency refunded disputed failure_code failure_message receipt_url",
        "refunds": f"{_MIRRORED} charge_id payment_intent_id amount currency status reason",
        "disputes": f"{_MIRRORED} charge_id payment_intent_id amount currency status reason",
        "sessions": f"{_MIRRORED} mode status payment_status client_reference_id payment_link stripe_customer_id"
        " stripe_subscription_id payment_intent_id stripe_invoice_id amount_total currency email line_items metadata",
        "overrides": "id user_id email email_hash kind role stripe_product_id author reason starts_at expires_at"
        " ended_at",
        "links_by_hand": "customer user_id",
        "spends": "user amount",
    }.items()
}

# what tells one row of a table from another
KEYS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(COLUMNS, ("id",)),
    "accounts": ("user_id", "provider"),
    "metadata_history": ("object_id", "as_of"),
    "links_by_hand": ("customer",),
    "spends": (),
}

# fmt: off
_TIMES: Final = frozenset({
    "created", "created_at", "as_of", "deleted_at", "email_verified", "email_changed_at", "tokens_expires_at",
    "grace_until", "next_change_at", "current_period_start", "current_period_end", "cancel_at", "canceled_at",
    "ended_at", "trial_start", "trial_end", "period_start", "period_end", "due_date", "finalized_at",
    "paid_at", "starts_at", "expires_at",
})
# fmt: on
_TIMED_ANSWERS: Final = frozenset({"grace_until", "tokens_expires_at"})


class UnreadableError(ValueError):
    """A file is not a list of cases; the message says which, and where."""


@dataclass(frozen=True, slots=True)
class Step:
    """One look at the clock: what comes, who goes, and what must hold then."""

    at: datetime
    add: Rows
    spends: Sequence[Row]
    removed_users: Sequence[str]
    expect: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A case as steps; one without a timeline is one step."""

    name: str
    source: str
    steps: Sequence[Step]
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_folder(folder: Path) -> list[Case]:
    """Read every `*.json` of a folder (or one file), in the order of their names."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    if not files:
        raise UnreadableError(f"{folder}: no *.json here")
    return [case for file in files for case in read_file(file)]


def read_file(file: Path) -> list[Case]:
    """Read one list of cases."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{file}: {error}") from error
    if not isinstance(listed, list):
        raise UnreadableError(f"{file}: not a list of cases")
    return [_read_case(raw, file, number) for number, raw in enumerate(listed, 1)]


def read_time(value: Any) -> datetime | None:
    """Read an ISO 8601 time with a zone; null stays null."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError(f"a time without a zone: {value}")
    return moment.astimezone(UTC)


def with_defaults(table: str, row: Row) -> Row:
    """Return a new row with the columns that were left out."""
    whole = {**{key: value for key, value in _DEFAULTS.get(table, {}).items() if key not in row}, **row}
    for column, derive in _DERIVED.get(table, {}).items():
        if column not in whole:
            whole[column] = derive(whole)
    return whole


def _read_case(raw: Any, file: Path, number: int) -> Case:
    name = raw.get("name") if isinstance(raw, dict) else None
    where = f"{file}: {name or f'case {number}'}"
    try:
        steps = raw["timeline"] if "timeline" in raw else [{"at": raw["now"], "add": raw["facts"], **_expected(raw)}]
        settings = {**SETTINGS, **_known(raw.get("settings") or {}, SETTINGS, "setting")}
        return Case(str(name or where), file.name, [_read_step(step) for step in steps], settings)
    except KeyError as error:
        raise UnreadableError(f"{where}: {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise UnreadableError(f"{where}: {error}") from error


def _expected(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: raw[key] for key in ("expect", "remove") if key in raw}


def _read_step(raw: Mapping[str, Any]) -> Step:
    _known(raw, {"at", "add", "remove", "expect"}, "part of a step")
    at = read_time(raw["at"])
    if at is None:
        raise ValueError("a step without a time")
    add = {
        table: [_read_row(table, row) for row in rows]
        for table, rows in _known(raw.get("add") or {}, COLUMNS, "table").items()
    }
    expect = _known(raw.get("expect") or {}, {"users", "links", "grants", "waiting"}, "expectation")
    removed = _known(raw.get("remove") or {}, {"users"}, "table to remove from").get("users", [])
    spends = add.pop("spends", [])
    return Step(at, add, spends, removed, {**expect, "users": _read_answers(expect.get("users") or {})})


def _read_row(table: str, row: Row) -> Row:
    _known(row, COLUMNS[table], f"column of {table}")
    typed = {column: read_time(value) if column in _TIMES else value for column, value in row.items()}
    for column in KEYS[table]:
        if column not in typed and column not in _DEFAULTS.get(table, {}):
            raise ValueError(f"a row of {table} without {column}")
    return typed


def _read_answers(users: Mapping[str, Row]) -> dict[str, Row]:
    return {
        user_id: {key: read_time(value) if key in _TIMED_ANSWERS else value for key, value in answers.items()}
        for user_id, answers in users.items()
    }


def _known(given: Mapping[str, Any], allowed: Collection[str], what: str) -> dict[str, Any]:
    for name in given:
        if name not in allowed:
            raise ValueError(f"{name} is no {what}")
    return dict(given)


_STRIPES: Final[Row] = {"created": CREATED, "deleted_at": None, "source": "evt_case"}
_WITH_METADATA: Final[Row] = {**_STRIPES, "metadata": {}}

_DEFAULTS: Final[dict[str, Row]] = {
    "users": {"email_verified": None, "email_changed_at": None},
    "accounts": {"created_at": CREATED},
    "customers": {**_WITH_METADATA, "email": None},
    "products": _WITH_METADATA,
    "prices": {
        **_WITH_METADATA,
        "stripe_product_id": None,
        "unit_amount": 900,
        "currency": "usd",
        "type": "recurring",
        "recurring_interval": "month",
        "recurring_interval_count": 1,
    },
    "metadata_history": {"metadata": {}},
    "subscriptions": {
        **_WITH_METADATA,
        "stripe_customer_id": None,
        "stripe_product_id": None,
        "stripe_price_id": None,
        "status": None,
        "quantity": 1,
        "current_period_start": None,
        "current_period_end": None,
        "trial_start": None,
        "trial_end": None,
        "canceled_at": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "ended_at": None,
    },
    "invoices": {
        **_STRIPES,
        "stripe_subscription_id": None,
        "status": "paid",
        "collection_method": "charge_automatically",
        "due_date": None,
        "post_payment_credit_notes_amount": 0,
        "lines": (),
        "lines_complete": True,
    },
    "invoice_payments": _STRIPES,
    "payment_intents": {**_WITH_METADATA, "status": "succeeded", "amount": 900},
    "charges": {**_STRIPES, "status": "succeeded", "amount_refunded": 0},
    "refunds": _STRIPES,
    "disputes": _STRIPES,
    "sessions": {
        **_WITH_METADATA,
        "mode": "payment",
        "status": "complete",
        "payment_status": "paid",
        "client_reference_id": None,
        "payment_link": None,
        "stripe_customer_id": None,
        "stripe_subscription_id": None,
        "payment_intent_id": None,
        "stripe_invoice_id": None,
        "email": None,
        "line_items": None,
    },
    "overrides": {
        "user_id": None,
        "role": "PREMIUM",
        "stripe_product_id": None,
        "starts_at": None,
        "expires_at": None,
        "ended_at": None,
    },
}

# columns whose default depends on others of the row, in the order in which they depend on each other
_DERIVED: Final[dict[str, dict[str, Callable[[Row], Any]]]] = {
    "users": {"email": lambda row: f"{row['id']}@example.com"},
    "invoices": {
        "paid_at": lambda row: row["created"],
        "finalized_at": lambda row: row["created"],
        "total": lambda row: max(0, sum(line.get("amount") or 0 for line in row["lines"])),
        "amount_paid": lambda row: row["total"],
    },
    "payment_intents": {"amount_received": lambda row: row["amount"]},
}
