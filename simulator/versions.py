"""The API versions in which the simulator can render, oldest first; they sort as text."""

ACACIA = "2025-02-24.acacia"
BASIL = "2025-03-31.basil"
DAHLIA = "2026-03-25.dahlia"
ENDIVE = "2026-10-28.endive"

VERSIONS = (ACACIA, ENDIVE)
