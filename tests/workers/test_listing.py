"""Lists read page by page: what was listed is never absent, whatever shares a second; all that is absent is found."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workers import listing

BEGAN = 12
# (id, created): few seconds for many objects, so that they share them.
THINGS = st.dictionaries(st.integers(0, 40).map("x{}".format), st.integers(1, BEGAN), max_size=25)


@given(at_stripe=THINGS, only_here=THINGS, size=st.integers(1, 6), since=st.none() | st.integers(1, BEGAN))
def test_exactly_what_a_whole_list_does_not_name_is_absent(
    at_stripe: dict[str, int], only_here: dict[str, int], size: int, since: int | None
) -> None:
    rows = {**only_here, **at_stripe}
    listed: list[dict[str, Any]] = [
        {"id": id, "created": created} for id, created in at_stripe.items() if since is None or created >= since
    ]
    listed.sort(key=lambda one: -one["created"])
    pages = [listed[start : start + size] for start in range(0, len(listed), size)] or [[]]
    place, absent = listing.Place(began=BEGAN), []
    for number, page in enumerate(pages, start=1):
        stretch = listing.turn_page(place, page, since=since, is_last=number == len(pages))
        absent += [
            id
            for id, created in rows.items()
            if (stretch.after or 0) < created <= stretch.until and id not in stretch.listed
        ]
    expected = {id for id, created in only_here.items() if id not in at_stripe and (since is None or created >= since)}
    assert sorted(absent) == sorted(expected)
