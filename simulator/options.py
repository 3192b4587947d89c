"""The options of practice as data, so that every command line offers the same ones; nothing heavy is loaded here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.people import User
from simulator.versions import ENDIVE, VERSIONS

SECRET = "whsec_practice"
PORT = 12111

# Every story, and what chance makes.
NAMES = ("membership", "history")


def user(text: str) -> User:
    """Read `ID=EMAIL`; raises ValueError."""
    id, separator, email = text.partition("=")
    if not (id and separator and email):
        raise ValueError(f"expected ID=EMAIL, got {text!r}")
    return User(id=id, email=email)


def share(text: str) -> float:
    """Read a number from 0 to 1; raises ValueError."""
    if not 0 <= float(text) <= 1:
        raise ValueError(f"expected a share from 0 to 1, got {text!r}")
    return float(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a command line: a flag if `read` is None; `read` raises ValueError for what it can't read."""

    name: str
    help: str
    read: Callable[[str], Any] | None = None
    default: Any = None
    choices: Sequence[str] | None = None
    metavar: str | None = None
    many: bool = False


OPTIONS = (
    Option(name="story", read=str, default="history", choices=NAMES, help="what happens"),
    Option(name="seed", read=int, default=1, metavar="N", help="equal seeds and clocks make equal histories"),
    Option(name="clock", read=int, metavar="UNIX_S", help="when it begins (default: so that it ends now)"),
    Option(name="customers", read=int, default=3, metavar="N", help="of a history"),
    Option(name="months", read=int, default=3, metavar="N", help="of a history, 30 days each"),
    Option(name="user", read=user, many=True, metavar="ID=EMAIL", help="who they are at the merchant's; repeat it"),
    Option(name="restless", help="a merchant who archives, deletes, raises prices and gives up invoices"),
    Option(name="url", read=str, metavar="URL", help="of the receiver, which is told what happens"),
    Option(name="secret", read=str, default=SECRET, metavar="WHSEC", help="what webhooks are signed with"),
    Option(name="api-version", read=str, default=ENDIVE, choices=VERSIONS, help="the receiver's"),
    Option(name="thin", help="thin events instead of snapshots"),
    Option(name="shuffle", help="deliver each step's events in any order"),
    Option(name="duplicates", read=share, default=0.0, metavar="SHARE", help="of the events that are sent twice"),
    Option(name="drops", read=share, default=0.0, metavar="SHARE", help="of the events that are never sent"),
    Option(name="twins", read=share, default=0.0, metavar="SHARE", help="of the changes that two events tell"),
    Option(name="stale", read=share, default=0.0, metavar="SHARE", help="of the posts that are signed too long ago"),
    Option(name="bad-day", read=share, default=0.0, metavar="SHARE", help="of the API's answers that go wrong"),
    Option(name="port", read=int, default=PORT, metavar="N", help="of the API; 0 takes a free one"),
    Option(name="pace", read=float, default=0.0, metavar="SECONDS", help="to wait after each step, such as a week"),
    Option(name="once", help="end after the story instead of serving on"),
    Option(name="json", help="print one JSON object, when the story is over"),
)
