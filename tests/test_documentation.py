"""What exists is documented, and what is documented exists: settings, commands, event types, routes, make targets."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from dotenv import dotenv_values

from models.settings import VARIABLES, Settings, read_settings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
EXAMPLE = ROOT / ".env.example"
COMPOSE = ROOT / "docker-compose.yml"

EMBEDDED = {"PG_BIN_DIR", "VALKEY_SERVER", "EMBEDDED_PG_USER"}
STATIC_ROUTE = "/static/<path:filename>"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def compose_variables() -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", read(COMPOSE)))


def known_names() -> set[str]:
    return set(VARIABLES) | EMBEDDED | compose_variables()


def code(markdown: str) -> list[str]:
    """Every `code span` and every line of a fenced block, without the escapes of tables."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```[^\n]*\n.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return lines + [span.replace(r"\|", "|") for span in re.findall(r"`([^`\n]+)`", prose)]


def commands_in(span: str) -> set[str]:
    """The commands that a piece of code names: "dues db upgrade | check [--json]" are two."""
    if not span.startswith("dues "):
        return set()
    alternatives = [words(part) for part in re.sub(r"\[[^]]*\]|#.*", "", span).split("|")]
    group = alternatives[0][:-1]
    return {" ".join(names) for names in (alternatives[0], *([*group, *names] for names in alternatives[1:]))}


def words(text: str) -> list[str]:
    """The leading words that can be names of commands; an argument or option ends them."""
    return list(itertools.takewhile(re.compile(r"[a-z][a-z-]*").fullmatch, text.split()))


def commands_of(command: click.Command, path: str) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield path
        return
    for name, below in command.commands.items():
        yield from commands_of(below, f"{path} {name}")


def documented_commands() -> set[str]:
    return {command for span in code(read(README)) for command in commands_in(span)}


def existing_commands() -> set[str]:
    from ops.cli import main

    return set(commands_of(main, "dues"))


def routes() -> set[str]:
    from ingest import create_app

    everything = Settings(
        stripe_webhook_secrets=("whsec_documentation",), api_tokens=("token",), ops_password="password"
    )
    return {plain(rule.rule) for rule in create_app(everything).url_map.iter_rules()} - {plain(STATIC_ROUTE)}


def plain(route: str) -> str:
    """A route without the names of its parameters."""
    return re.sub(r"<[^>]*>", "<>", route)


def test_every_setting_stands_in_the_example_with_a_sentence_above_it() -> None:
    text = read(EXAMPLE)
    described = set(re.findall(r"^# .+\n([A-Z_]+)=", text, flags=re.MULTILINE))
    named = set(re.findall(r"^([A-Z_]+)=", text, flags=re.MULTILINE))
    assert named == described == known_names()


def test_a_copy_of_the_example_changes_nothing() -> None:
    copied = {name: value or "" for name, value in dotenv_values(EXAMPLE).items()}
    assert read_settings(copied) == Settings()


def test_every_setting_reaches_the_containers() -> None:
    assert sorted(name for name in VARIABLES if not re.search(rf"^ +{name}: ", read(COMPOSE), re.MULTILINE)) == []


def test_every_setting_stands_in_the_readme() -> None:
    assert sorted(name for name in VARIABLES if f"`{name}`" not in read(README)) == []


@pytest.mark.parametrize("page", ["README.md", ".env.example", "docker-compose.yml", "docs"])
def test_no_page_names_a_setting_that_does_not_exist(page: str) -> None:
    files = [ROOT / page] if (ROOT / page).is_file() else sorted((ROOT / page).glob("**/*.md"))
    named = {name for file in files for name in re.findall(r"\b(?:DUES|STRIPE)_[A-Z][A-Z_]*[A-Z]\b", read(file))}
    assert sorted(name for name in named if name.removesuffix("_FILE") not in known_names()) == []


def test_every_command_stands_in_the_readme_and_no_other() -> None:
    assert documented_commands() == existing_commands()


def test_every_commands_help_shows_an_example() -> None:
    from ops.cli import main

    def without_example(command: click.Command, path: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            for name, below in command.commands.items():
                yield from without_example(below, f"{path} {name}")
        elif f"{path}" not in (command.help or "") + (command.epilog or ""):
            yield path

    assert sorted(without_example(main, "dues")) == []


def test_every_event_type_stands_in_the_readme() -> None:
    from workers.handlers import BY_EVENT_TYPE

    assert sorted(name for name in BY_EVENT_TYPE if f"`{name}`" not in read(README)) == []


def test_the_readme_names_no_event_type_that_is_not_handled() -> None:
    from workers.handlers import BY_EVENT_TYPE

    families = "|".join(sorted({re.escape(name.rpartition(".")[0]) for name in BY_EVENT_TYPE}))
    named = {span for span in code(read(README)) if re.fullmatch(rf"(?:{families})\.[a-z_]+", span)}
    assert sorted(named - set(BY_EVENT_TYPE)) == []


def test_every_route_stands_in_the_readme() -> None:
    documented = plain("\n".join(code(read(README))))
    assert sorted(route for route in routes() if not re.search(rf"{re.escape(route)}(?![\w/<])", documented)) == []


def test_the_readme_names_no_route_that_does_not_exist() -> None:
    spans = [plain(re.sub(r"^(?:GET|POST) ", "", span)) for span in code(read(README))]
    named = {span for span in spans if re.fullmatch(r"/(?:webhooks|api|ops|healthz|readyz|metrics)[\w/<>]*", span)}
    assert sorted(named - routes()) == []


def test_every_make_target_stands_in_the_readme_and_no_other() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", read(ROOT / "Makefile"), flags=re.MULTILINE)) - {"help"}
    documented = {name for span in code(read(README)) for name in re.findall(r"^make ([a-z-]+)", span)}
    assert documented == targets


def test_links_to_files_lead_somewhere() -> None:
    pages = [README, ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]
    links = {(page, link) for page in pages for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", read(page))}
    assert sorted(f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()) == []


@pytest.mark.parametrize(
    ("span", "commands"),
    [
        ("dues demo --once", {"dues demo"}),
        ("dues db upgrade | downgrade | check", {"dues db upgrade", "dues db downgrade", "dues db check"}),
        ("dues worker [--lane live|bulk|api]… [-c N]", {"dues worker"}),
        ("dues events show ID", {"dues events show"}),
        ("dues setup-admin EMAIL", {"dues setup-admin"}),
        ("dues events replay evt_1 --json", {"dues events replay"}),
        ("dues serve --bind 0.0.0.0:8000 # the receiver", {"dues serve"}),
        ("make demo", set()),
    ],
)
def test_commands_are_found_however_they_are_written(span: str, commands: set[str]) -> None:
    assert commands_in(span) == commands


def test_every_rule_of_the_policy_names_a_case_that_exists() -> None:
    cases = {case["name"] for file in (ROOT / "tests/cases").glob("*.json") for case in json.loads(read(file))}
    rows = re.findall(r"^\| (?!rule|---)[^|]* \| ([^|]*) \|$", read(ROOT / "docs/policy.md"), flags=re.MULTILINE)
    assert len(rows) > 40
    assert sorted(set(rows) - cases) == []
