"""The people of stories and histories: users of the merchant's site."""

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.ids import token


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody with an account at the merchant's site."""

    id: str
    email: str
    name: str | None = None


USERS = (
    User(id="user_alice", email="alice@example.com", name="Alice Ångström"),
    User(id="user_bob", email="bob@example.com", name="Bob Brown"),
    User(id="user_cara", email="cara@example.com", name="Cara Cruz"),
)


def people(seed: int | str, count: int) -> Sequence[User]:
    """`count` users whose ids and addresses belong to this seed alone."""
    names = (token(f"{seed}:user:{number}", 10) for number in range(count))
    return [User(id=f"user_{name}", email=f"{name.lower()}@example.com", name=f"User {name}") for name in names]
