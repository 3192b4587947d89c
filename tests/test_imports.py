"""Who may import whom, and where one thing has its only home: read from the source, nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("celeryconfig", "ingest", "migrations", "models", "ops", "simulator", "workers")
PURE = ("workers.entitlements", "workers.tokens", "workers.identity")
# Pure too, and made of the above.
LEDGER = "workers.balance"


@dataclass(frozen=True)
class Rule:
    """What the modules under `package` may import besides the standard library; of several rules the longest holds."""

    package: str
    ours: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ()
    any_of_theirs: bool = False
    never: tuple[str, ...] = ()


RULES = (
    Rule("models", ours=("models",), theirs=("sqlalchemy", "psycopg")),
    Rule("migrations", ours=("models",), theirs=("alembic", "sqlalchemy", "psycopg")),
    *(Rule(module) for module in PURE),
    Rule(LEDGER, ours=PURE),
    # The registry alone knows every handler.
    Rule("workers.handlers", ours=("models", "workers.shapes", "workers.handlers"), never=("os",)),
    Rule("workers.handlers.*", ours=("models", "workers.shapes"), never=("os",)),
    Rule("workers", ours=("models", "workers"), any_of_theirs=True, never=("flask", "werkzeug", "granian")),
    Rule("celeryconfig", ours=("models", "workers"), theirs=("celery", "kombu")),
    Rule(
        "ingest",
        ours=("ingest", "models", "workers.bell", "workers.catalog_version", "workers.explain", LEDGER, *PURE),
        any_of_theirs=True,
        never=("celery", "kombu"),
    ),
    Rule("ops", ours=PACKAGES, any_of_theirs=True),
    Rule("simulator", ours=("simulator",), theirs=("flask", "werkzeug")),
)

# What the receiver must not even load by way of others: it would then need what only workers have.
UNREACHABLE_FROM_INGEST = ("workers.handlers", "workers.tasks", "workers.stripe_api", "workers.process")

ONLY_HOME = {
    "stripe": ("workers.stripe_api",),
    "tenacity": ("workers.stripe_api",),
    "celery": ("celeryconfig", "ops", "workers"),
}

# Where a process starts, and so may read its environment.
STARTS = ("celeryconfig", "ingest", "migrations.env", "ops", "simulator.__main__", "workers.celery")


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root: Path) -> dict[str, Path]:
    """Module name → file, for all packages of ours."""
    found = [path for package in PACKAGES for path in (*root.glob(f"{package}.py"), *root.glob(f"{package}/**/*.py"))]
    return {module_name(path, root): path for path in found}


def imported(module: str, path: Path, modules: frozenset[str]) -> Iterator[str]:
    """Every name that `path` imports, in full; `from package import module` counts as that module."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            named = {f"{source}.{alias.name}" for alias in node.names}
            yield from named & modules
            if named - modules:
                yield source


def graph(root: Path) -> dict[str, frozenset[str]]:
    files = sources(root)
    return {module: frozenset(imported(module, path, frozenset(files))) for module, path in files.items()}


def rule_for(module: str) -> Rule:
    def holds(rule: Rule) -> bool:
        return module.startswith(rule.package[:-1]) if rule.package.endswith(".*") else under(module, rule.package)

    return max((rule for rule in RULES if holds(rule)), key=lambda rule: len(rule.package))


def allowed(rule: Rule, name: str) -> bool:
    if any(under(name, never) for never in rule.never):
        return False
    top = name.partition(".")[0]
    if top in (*PACKAGES, "benchmarks", "tests"):
        return any(under(name, ours) for ours in rule.ours)
    return top in sys.stdlib_module_names or rule.any_of_theirs or top in rule.theirs


def violations(root: Path) -> list[str]:
    """Every import that a rule forbids, as `importer imports imported`."""
    edges = graph(root)
    found = [
        f"{module} imports {name}"
        for module, names in edges.items()
        for name in names
        if not allowed(rule_for(module), name)
    ]
    found += [
        f"{module} imports {name}, whose only home is {', '.join(homes)}"
        for library, homes in ONLY_HOME.items()
        for module, names in edges.items()
        for name in names
        if under(name, library) and not any(under(module, home) for home in homes)
    ]
    found += [
        f"{start} reaches {end}"
        for start in edges
        if under(start, "ingest")
        for end in reachable(edges, start)
        if any(under(end, forbidden) for forbidden in UNREACHABLE_FROM_INGEST)
    ]
    return sorted(set(found))


def reachable(edges: dict[str, frozenset[str]], start: str) -> set[str]:
    """Our modules that are loaded when `start` is, packages above them included."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in edges and module not in seen:
            seen.add(module)
            waiting += [*edges[module], module.rpartition(".")[0]]
    return seen


def environment_readers(root: Path) -> list[str]:
    """Modules that touch the environment though no process starts there."""
    return sorted(
        module
        for module, path in sources(root).items()
        if not any(under(module, start) for start in STARTS) and reads_environment(ast.parse(path.read_text("utf-8")))
    )


def reads_environment(tree: ast.Module) -> bool:
    names = {"environ", "environb", "getenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
        for node in ast.walk(tree)
    )


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_every_import_keeps_to_the_table() -> None:
    assert violations(ROOT) == []


def test_the_environment_is_read_only_where_a_process_starts() -> None:
    assert environment_readers(ROOT) == []


def test_the_checker_sees_the_project() -> None:
    seen = {module.partition(".")[0] for module in graph(ROOT)}
    assert seen == {package for package in PACKAGES if (ROOT / package).is_dir() or (ROOT / f"{package}.py").exists()}


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("models/a.py", "import flask", "models.a imports flask"),
        ("models/a.py", "from workers.shapes import id_of", "models.a imports workers.shapes"),
        ("models/a.py", "def late():\n    import redis.asyncio", "models.a imports redis.asyncio"),
        ("workers/entitlements.py", "import sqlalchemy", "workers.entitlements imports sqlalchemy"),
        ("workers/tokens.py", "from models import settings", "workers.tokens imports models.settings"),
        ("workers/identity.py", "from . import tokens", "workers.identity imports workers.tokens"),
        ("workers/handlers/price.py", "from workers.handlers import product",
         "workers.handlers.price imports workers.handlers.product"),
        ("workers/handlers/price.py", "from .product import HANDLER",
         "workers.handlers.price imports workers.handlers.product"),
        ("workers/handlers/price.py", "from os import path", "workers.handlers.price imports os"),
        ("workers/handlers/price.py", "import stripe", "workers.handlers.price imports stripe"),
        ("workers/handlers/price.py", "from workers import process", "workers.handlers.price imports workers.process"),
        ("workers/process.py", "from tests import support", "workers.process imports tests"),
        ("workers/process.py", "import ops.cli", "workers.process imports ops.cli"),
        ("workers/process.py", "from flask import g", "workers.process imports flask"),
        ("workers/process.py", "import tenacity",
         "workers.process imports tenacity, whose only home is workers.stripe_api"),
        ("workers/process.py", "import stripe",
         "workers.process imports stripe, whose only home is workers.stripe_api"),
        ("ingest/webhook.py", "from workers.handlers import price", "ingest.webhook imports workers.handlers.price"),
        ("ingest/webhook.py", "from workers import tasks", "ingest.webhook imports workers.tasks"),
        ("ingest/webhook.py", "from workers.stripe_api import get", "ingest.webhook imports workers.stripe_api"),
        ("ingest/webhook.py", "from workers import bell", "ingest.webhook reaches workers.tasks"),
        ("ingest/webhook.py", "import ops", "ingest.webhook imports ops"),
        ("simulator/api.py", "from models.tables import Base", "simulator.api imports models.tables"),
        ("simulator/api.py", "import stripe", "simulator.api imports stripe"),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str, found: str) -> None:
    known = ("models/settings", "models/tables", "workers/process", "workers/tasks", "workers/tokens",
             "workers/handlers/__init__", "workers/handlers/price", "workers/handlers/product")  # fmt: skip
    innocent = {f"{name}.py": "" for name in known} | {"workers/bell.py": "from workers import tasks"}
    root = plant(tmp_path, innocent)
    before = violations(root)
    assert found in violations(plant(root, {file: text}))
    assert before == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("models/a.py", "import json, psycopg\nfrom sqlalchemy.orm import Session\nfrom models.tables import Base"),
        ("workers/handlers/__init__.py", "from workers.handlers import price, product"),
        ("workers/handlers/price.py", "from workers import shapes\nfrom models.tables import Base"),
        ("workers/stripe_api.py", "import stripe, tenacity"),
        ("ingest/webhook.py", "from workers import bell\nfrom workers.explain import explain\nimport flask"),
        ("ops/cli.py", "import ingest, simulator.api, workers.tasks, celery, click"),
        ("simulator/api.py", "import hmac\nfrom flask import Flask\nfrom simulator import story"),
    ],
)
def test_what_the_table_allows_is_not_found(tmp_path: Path, file: str, text: str) -> None:
    known = ("models/tables", "workers/bell", "workers/explain", "workers/shapes", "workers/tasks", "ingest/__init__",
             "workers/handlers/price", "workers/handlers/product", "simulator/api", "simulator/story")  # fmt: skip
    assert violations(plant(tmp_path, {f"{name}.py": "" for name in known} | {file: text})) == []


@pytest.mark.parametrize("text", ["import os\nos.environ['A']", "from os import getenv", "import os\nos.getenv('A')"])
def test_a_planted_reader_of_the_environment_is_found(tmp_path: Path, text: str) -> None:
    assert environment_readers(plant(tmp_path, {"workers/process.py": text, "ops/cli.py": text})) == ["workers.process"]
