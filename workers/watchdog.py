"""Looks from outside whether Stripe still reaches us: an alarm inside the receiver is silent when it should ring most.

Beat sends it every five minutes; its row in `sync_runs` is also how one sees that beat and a worker are there.
"""

from __future__ import annotations

KIND = "watchdog"
SECONDS = 300.0
LATE_MINUTES = 15
