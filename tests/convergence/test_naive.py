"""The naive computation stands the same cases as the real one: else it could not tell who is wrong."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.cases.loading import Case, read_folder
from tests.cases.roads import Outcome, compare
from tests.cases.world import World
from tests.convergence.naive.books import TABLES, Books

CASES = read_folder(Path(__file__).parents[1] / "cases")
DECIDED_BY_PEOPLE = ("overrides", "links_by_hand")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_naive_computation_answers_the_case(case: Case) -> None:
    world, books, outcome = World(), Books(case.settings), Outcome()
    for step in case.steps:
        for user in step.removed_users:
            world.remove_user(user)
        world.add(step)
        facts: dict[str, Collection[dict[str, Any]]] = {
            table: world.rows(table) for table in (*TABLES, *DECIDED_BY_PEOPLE)
        }
        compare(step, books.look(facts, step.at, step.spends), outcome)
    assert [str(one) for one in outcome.findings] == []
