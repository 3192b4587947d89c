"""The pins: complete for every supported Python and platform, the same in every file, naming no place to fetch from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from itertools import product
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = {
    "requirements-run.txt": PROJECT["dependencies"],
    "requirements.txt": PROJECT["dependencies"] + EXTRAS["embedded"],
    "requirements-dev.txt": PROJECT["dependencies"] + EXTRAS["embedded"] + EXTRAS["dev"],
}
FILES = [*WANTED, "requirements-build.txt"]
# Around 3.11.3, 3.12 and 3.13 some dependencies of ours begin or end to need a backport.
PYTHONS = ("3.11.0", "3.11.2", "3.11.9", "3.12.0", "3.13.0", "3.14.0")
MACHINES = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))


def text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def pins(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+) \\$", text(file), flags=re.MULTILINE))


def environments() -> Iterator[dict[str, str]]:
    for python, (sys_platform, system, machine) in product(PYTHONS, MACHINES):
        yield {
            **{name: str(value) for name, value in default_environment().items()},
            "python_version": python.rpartition(".")[0],
            "python_full_version": python,
            "implementation_version": python,
            "sys_platform": sys_platform,
            "platform_system": system,
            "platform_machine": machine,
        }


def needed(wanted: Iterable[str], environment: dict[str, str]) -> set[str]:
    """All that `wanted` pulls in where `environment` holds, by the metadata of what is installed here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in wanted]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        below = [Requirement(line) for line in requires(name) or []]
        waiting += [line for line in below if holds(line, extras, environment)]
    return {str(name) for name, _ in seen}


def holds(requirement: Requirement, extras: frozenset[str], environment: dict[str, str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))


@pytest.mark.parametrize("file", FILES)
def test_every_pin_has_hashes_and_no_line_names_a_place(file: str) -> None:
    lines = [line for line in text(file).splitlines() if line and not line.lstrip().startswith("#")]
    allowed = re.compile(r"[a-z0-9.-]+==[0-9a-z.]+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in lines if not allowed.fullmatch(line)] == []
    assert len(pins(file)) == sum("==" in line for line in lines) > 0
    assert "://" not in text(file)


def test_every_file_pins_the_same_releases() -> None:
    everything = pins("requirements-dev.txt")
    assert {file: pins(file).items() - everything.items() for file in FILES} == {file: set() for file in FILES}


@pytest.mark.parametrize("file", WANTED)
def test_the_pins_are_what_pyproject_asks_for(file: str) -> None:
    pinned = pins(file)
    wanted = [Requirement(line) for line in WANTED[file]]
    assert [str(line) for line in wanted if pinned[canonicalize_name(line.name)] not in line.specifier] == []


@pytest.mark.parametrize("file", WANTED)
def test_the_pins_are_complete_on_every_supported_python_and_platform(file: str) -> None:
    missing = {name for environment in environments() for name in needed(WANTED[file], environment) - set(pins(file))}
    assert missing == set()
