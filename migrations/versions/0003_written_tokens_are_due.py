"""Whoever writes tokens makes a decision due: what was written expires one day, or moves the next expiry."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FUNCTION = """
    CREATE FUNCTION dues_tokens_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.next_change_at := now();
        RETURN NEW;
    END $$
"""

# Not at pg_trigger_depth() = 0 alone: an entry of the token ledger changes the balance through a trigger.
TRIGGER = """
    CREATE TRIGGER dues_tokens_changed BEFORE UPDATE ON users
        FOR EACH ROW WHEN (NEW.tokens <> OLD.tokens AND NOT dues_is_writing())
        EXECUTE FUNCTION dues_tokens_changed()
"""


def upgrade() -> None:
    op.execute(FUNCTION)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER dues_tokens_changed ON users")
    op.execute("DROP FUNCTION dues_tokens_changed")
