"""`make mutants`: break Dues on purpose, one way at a time, in a copy of the tree; each must make its test fail.

    python -m tests.convergence.mutants [--only WORD] [--seconds 120]

Prints a table; exit 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.convergence.__main__ import a_template
from tests.convergence.proving import Template
from tests.support import ROOT

# A test that gives no answer for so long is taken for one that fails.
PATIENCE = 300

_ONE_TRANSACTION = '''

class _Only:
    """A mutant: an engine whose transactions are all one."""

    def __init__(self, connection):
        self.connection = connection

    @contextlib.contextmanager
    def begin(self):
        yield self.connection


def _in_one(former):
    def step(self, *arguments, **keywords):
        engine = self.engine
        with engine.begin() as connection:
            self.engine = _Only(connection)
            try:
                return former(self, *arguments, **keywords)
            finally:
                self.engine = engine

    return step


Road.{name} = _in_one(Road.{name})
'''


@dataclass(frozen=True, slots=True)
class Mutant:
    """A way to be wrong: in `file`, `old` (which stands there once) becomes `new`; without `old`, `new` is added.

    `test` is a test that must fail; without one it is the hunt through random histories.
    """

    name: str
    file: str
    old: str
    new: str
    test: str | None = None


MUTANTS = (
    Mutant(
        "strict < guard: of one second the first to arrive stays",
        "workers/snapshots.py",
        "        tied = result.tied | {row_id for row_id in result.written if len(groups[row_id]) > 1}\n",
        "        tied = set()\n",
    ),
    Mutant(
        "last arrival wins",
        "models/upsert.py",
        'f" WHERE t.as_of {guard} excluded.as_of"',
        'f" WHERE true OR t.as_of {guard} excluded.as_of"',
    ),
    Mutant(
        "no tombstones: anything revives what was deleted",
        "models/upsert.py",
        'f" WHERE t.as_of {guard} excluded.as_of"',
        'f" WHERE t.as_of {guard} excluded.as_of OR t.deleted_at IS NOT NULL"',
        "tests/workers/test_process.py::test_nothing_older_revives_what_was_deleted",
    ),
    Mutant(
        "as_of not advanced on equal values",
        "models/upsert.py",
        'f" WHERE t.as_of {guard} excluded.as_of"',
        "f\" WHERE (t.as_of {guard} excluded.as_of AND ({', '.join(f't.{c}' for c in columns if c not in BOOKKEEPING)})"
        " IS DISTINCT FROM ({', '.join(f'excluded.{c}' for c in columns if c not in BOOKKEEPING)}))\"",
    ),
    Mutant(
        "decide before commit: WRITE, LINK and DECIDE in one transaction",
        "workers/process.py",
        "",
        _ONE_TRANSACTION.format(name="_work_off"),
        "tests/workers/test_process.py::test_two_workers_side_by_side_never_strand_a_payer",
    ),
    Mutant(
        "links written inside DECIDE's transaction",
        "workers/process.py",
        "",
        _ONE_TRANSACTION.format(name="_settle"),
        "tests/workers/test_locks.py",
    ),
    Mutant(
        "guests are decided without looking for their customers",
        "workers/process.py",
        "customers=effects.evidence_changed, users=guests)",
        "customers=effects.evidence_changed)",
    ),
    Mutant(
        "user lock dropped",
        "workers/recompute.py",
        ' WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE",',
        ' WHERE id = ANY(:ids) ORDER BY id",',
        "tests/workers/test_locks.py",
    ),
    Mutant(
        "decide reads its own former answer: a role once given stays",
        "workers/recompute.py",
        "    _record_changes(connection, people, decisions,",
        "    decisions = {user: replace(one, role='PREMIUM') if people[user].role == 'PREMIUM' else one"
        " for user, one in decisions.items()}\n    _record_changes(connection, people, decisions,",
    ),
    Mutant(
        "grant keyed by the id of the event that told of it",
        "workers/bookkeeping.py",
        "i.post_payment_credit_notes_amount, i.lines, i.lines_complete,",
        "i.post_payment_credit_notes_amount, (SELECT jsonb_agg(l || jsonb_build_object('id', (l ->> 'id') || i.source))"
        " FROM jsonb_array_elements(i.lines) AS l) AS lines, i.lines_complete,",
    ),
    Mutant(
        "a figure is taken as it is now, not as it was at the payment",
        "workers/snapshots.py",
        "        self.connection.execute(_REMEMBER, parameters)\n",
        "",
    ),
    Mutant(
        "parents locked in a round of their own",
        "workers/snapshots.py",
        "named[table] | groups.keys())",
        "named[table])",
        "tests/workers/test_locks.py",
    ),
    Mutant(
        "lease without claim check",
        "models/ledger.py",
        "WHERE id = ANY(:ids) AND claim = :token RETURNING id",
        "WHERE id = ANY(:ids) AND :token IS NOT NULL RETURNING id",
        "tests/models/test_ledger.py",
    ),
    Mutant(
        "bell's key deleted after the claim",
        "workers/tasks.py",
        "    bell().answer(lane)\n    with _in_a_line(TASK):\n        counts = road().process(lane)\n",
        "    with _in_a_line(TASK):\n        counts = road().process(lane)\n        bell().answer(lane)\n",
        "tests/workers/test_tasks.py::test_whatever_is_stored_after_a_worker_has_claimed_rings_for_the_next",
    ),
)


def main() -> int:
    """0: every mutant was caught; 1: one survived."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="those whose name holds this")
    parser.add_argument("--seconds", type=float, default=240, help="how long to hunt for one")
    options = parser.parse_args()
    survived = 0
    print("| mutant | caught by | after |\n|---|---|---|", flush=True)
    with a_template() as template, tempfile.TemporaryDirectory(prefix="dues-mutants-") as folder:
        for number, mutant in enumerate(one for one in MUTANTS if options.only in one.name):
            tree = Path(folder, str(number))
            plant(mutant, tree)
            caught = hunt(mutant, tree, template, options.seconds)
            survived += caught is None
            print(f"| {mutant.name} | {caught or 'nothing: IT SURVIVED |'} |", flush=True)
    return int(bool(survived))


def plant(mutant: Mutant, tree: Path) -> None:
    """Copy what git knows of to `tree`, and break it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    file = tree / mutant.file
    text = file.read_text()
    if mutant.old and text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: what it changes stands {text.count(mutant.old)} times in {mutant.file}")
    file.write_text(text.replace(mutant.old, mutant.new) if mutant.old else text + mutant.new)


def hunt(mutant: Mutant, tree: Path, template: Template, seconds: float) -> str | None:
    """What caught the mutant, and after how long, as two cells of the table; None if it survived."""
    begin = time.monotonic()
    environ = {**os.environ, "PYTHONPATH": str(tree), "DATABASE_URL": template[0]}
    if mutant.test is None:
        done = _run(tree, environ, "tests.convergence.hunt", str(seconds), *template)
        answer = json.loads(done.stdout.splitlines()[-1]) if done is not None and done.returncode else {}
        where = f"convergence: {answer.get('found', 'it stood still').split(':')[0]}"
        after = f"{answer.get('histories', 0)} histories, "
    else:
        done = _run(tree, environ, "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test)
        where, after = f"`{mutant.test.removeprefix('tests/')}`", ""
    if done is not None and not done.returncode:
        return None
    if done is not None and done.returncode != 1:
        raise RuntimeError(f"{mutant.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return f"{where} | {after}{time.monotonic() - begin:.0f} s"


def _run(tree: Path, environ: Mapping[str, str], *module: str) -> subprocess.CompletedProcess[str] | None:
    """A module in the copy; None if it gave no answer in time."""
    try:
        return subprocess.run(
            [sys.executable, "-m", *module],
            cwd=tree,
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=PATIENCE + 60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    sys.exit(main())
