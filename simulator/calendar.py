"""Billing periods: calendar arithmetic in Unix seconds, UTC."""

import calendar
from datetime import UTC, datetime

MINUTE, HOUR, HALF_DAY, DAY = 60, 3600, 43200, 86400
DAYS = {"day": 1, "week": 7}
MONTHS = {"month": 1, "year": 12}


def add_months(at: int, months: int) -> int:
    """The same day of the month and time of day, `months` later or earlier; the month's last day if it is shorter."""
    moment = datetime.fromtimestamp(at, UTC)
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return int(moment.replace(year=year, month=month + 1, day=day).timestamp())


def period_end(anchor: int, start: int, interval: str, count: int) -> int:
    """The end of the billing period that starts at `start`, in step with the billing cycle anchor.

    A subscription anchored on the 31st is billed on the last day of shorter months and on the 31st again after them.
    """
    if interval in DAYS:
        step = DAYS[interval] * count * DAY
        return anchor + ((start - anchor) // step + 1) * step
    step = MONTHS[interval] * count
    cycles = max((start - anchor) // (step * 31 * DAY), 0)
    while (end := add_months(anchor, cycles * step)) <= start:
        cycles += 1
    return end
