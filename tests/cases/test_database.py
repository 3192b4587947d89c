"""The cases through a real database: all rows at once, and one by one in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.cases.database import DatabaseRoad, engine_for
from tests.cases.loading import Case, read_file
from tests.cases.pure_tokens import PureRoad

FOLDER = Path(__file__).parent


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with engine_for(database_url) as engine:
        yield engine


def _expecting_everything(case: Case) -> Case:
    """The case, expecting of every user and customer all that the pure functions say."""
    steps = zip(case.steps, PureRoad().answers(case), strict=True)
    return replace(case, steps=[replace(step, expect=answers) for step, answers in steps])


@pytest.mark.parametrize("file", ["roles.json", "overrides.json", "links.json"])
@pytest.mark.parametrize("seed", [None, 1, 2], ids=["rows", "shuffled", "shuffled otherwise"])
def test_the_database_says_of_everybody_what_the_pure_functions_say(
    engine: Engine,
    file: str,
    seed: int | None,
) -> None:
    road = DatabaseRoad(engine, seed)
    for case in read_file(FOLDER / file):
        outcome = road.run(_expecting_everything(case))
        assert (case.name, [str(finding) for finding in outcome.findings]) == (case.name, [])
        assert outcome.checked > 0
