"""A third lane of the ledger: events that can't be read before Stripe's API has been asked."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ALLOW = """
    ALTER TABLE stripe_events DROP CONSTRAINT stripe_events_lane_check,
        ADD CONSTRAINT stripe_events_lane_check CHECK (lane IN ({lanes}))
"""


def upgrade() -> None:
    op.execute(ALLOW.format(lanes="'live', 'bulk', 'api'"))


def downgrade() -> None:
    op.execute("UPDATE stripe_events SET lane = 'live' WHERE lane = 'api'")
    op.execute(ALLOW.format(lanes="'live', 'bulk'"))
