"""The facts of a case as they stand at a step: rows that were added, changed and removed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection

from tests.cases.loading import KEYS, Row, Step, with_defaults


class World:
    """Rows by table and key, as CONTRACT §4 would keep them."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[tuple[object, ...], Row]] = defaultdict(dict)

    def rows(self, table: str) -> Collection[Row]:
        """Return the rows of a table."""
        return self._tables[table].values()

    def find(self, table: str, row_id: str | None) -> Row | None:
        """Return the row with this id."""
        return self._tables[table].get((row_id,))

    def add(self, step: Step) -> None:
        """Insert the rows of a step, or change the given columns of rows that are there."""
        for table, rows in step.add.items():
            for row in rows:
                self.put(table, row)

    def remove_user(self, user_id: str) -> None:
        """Delete a user: accounts go along; mirrored facts and bans stay, and are nobody's."""
        self._tables["users"].pop((user_id,))
        self._tables["accounts"] = {
            key: row for key, row in self._tables["accounts"].items() if row["user_id"] != user_id
        }
        for override in self.rows("overrides"):
            if override["user_id"] == user_id:
                override["user_id"] = None

    def put(self, table: str, row: Row) -> Row:
        """Insert a row with its defaults, or change the given columns of the one that is there; return the whole."""
        key = tuple(row[column] for column in KEYS[table])
        known = self._tables[table].get(key)
        if known is not None:
            known.update(row)
            return known
        whole = with_defaults(table, row)
        if table == "overrides":
            whole["email_hash"] = self._hash_for(whole)
        if table == "invoices" and "stripe_customer_id" not in whole:
            subscription = self.find("subscriptions", whole["stripe_subscription_id"])
            whole["stripe_customer_id"] = subscription["stripe_customer_id"] if subscription else None
        self._tables[table][key] = whole
        return whole

    def _hash_for(self, override: Row) -> str | None:
        """Remember the address of whoever a ban is laid on."""
        user = self.find("users", override["user_id"])
        email = override.get("email") or (user and user["email"])
        return override.get("email_hash") or (email_hash(email) if override["kind"] == "ban" and email else None)


def email_hash(email: str) -> str:
    """Hash an address as the database's `dues_email_hash` does."""
    return hashlib.sha256(email.lower().encode()).hexdigest()
