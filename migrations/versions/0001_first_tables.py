"""All tables of CONTRACT §4, with what the database itself keeps true about them."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    for name in ("0001_tables.sql", "0001_triggers.sql"):
        op.execute((SQL / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    op.execute((SQL / "0001_downgrade.sql").read_text(encoding="utf-8"))
