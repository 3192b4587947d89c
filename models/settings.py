"""The settings of a process: read once from the environment where it starts, checked, and handed on as one value.

It lives here because `models` is what every other package may import.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Environment = Literal["development", "staging", "production"]
LinkByEmail = Literal["off", "verified", "any"]
Livemode = Literal["any", "live", "test"]

DEVELOPMENT_SECRET = "whsec_development"  # noqa: S105 - published on purpose; production refuses it
LOCAL_HOSTS = frozenset({"", "localhost", "127.0.0.1", "::1"})
ENCRYPTED = frozenset({"require", "verify-ca", "verify-full"})
PAUSES = frozenset({"processing", "grants", "repairs"})


class SettingsError(ValueError):
    """Some settings are missing or unusable; the message names each one and says what it should be."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator can set; times in seconds. CONTRACT §1 and `.env.example` describe each of them."""

    env: Environment = "development"
    database_url: str = dataclasses.field(default="", repr=False)
    redis_url: str = dataclasses.field(default="", repr=False)
    stripe_webhook_secrets: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    stripe_api_key: str = dataclasses.field(default="", repr=False)
    stripe_api_base: str = ""
    stripe_rate: int = 20
    stripe_timeout: float = 8.0
    webhook_url: str = ""
    stripe_livemode: Livemode = "any"
    stripe_account: tuple[str, ...] = ()
    api_tokens: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    ops_password: str = dataclasses.field(default="", repr=False)
    trusted_providers: tuple[str, ...] = ("google", "apple", "github")
    pause: frozenset[str] = frozenset()
    shadow: bool = False
    grace_days: int = 3
    link_by_email: LinkByEmail = "verified"
    retention_days: int = 90
    stale_seconds: int = 86_400
    checkout_wait: float = 2.0
    list_size: int = 200
    lease_seconds: int = 60
    sweep_seconds: int = 30
    pool_size: int = 4
    database_timeout: float = 1.5
    lock_timeout: float = 5.0
    statement_timeout: float = 20.0
    idle_timeout: float = 20.0


def _text(value: str) -> str:
    return value


def _names(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return value

    return read


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return read


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", value) or not low <= float(value) <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return float(value)

    return read


def _pauses(value: str) -> frozenset[str]:
    names = frozenset(_names(value))
    if names - PAUSES:
        raise ValueError(f"a list of {', '.join(sorted(PAUSES))}")
    return names


def _database_url(value: str) -> str:
    if not re.match(r"postgres(ql)?(\+psycopg)?://", value):
        raise ValueError("an address that begins with postgresql:// or postgresql+psycopg://")
    try:
        _ = urlsplit(value).port
    except ValueError:  # whose message holds a piece of the password, if that has a "/" in it
        raise ValueError("an address with a port that is a number (in a password, / is written %2F)") from None
    return re.sub(r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", value)


def _web_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
        raise ValueError("an address like https://example.com/webhooks/stripe")
    return value


def _switch(value: str) -> bool:
    return bool({"0": False, "1": True}[_one_of("0", "1")(value)])


# environment variable → (field, reader). The one list of settings; the documentation is tested against it.
VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "DUES_ENV": ("env", _one_of("development", "staging", "production")),
    "DATABASE_URL": ("database_url", _database_url),
    "REDIS_URL": ("redis_url", _text),
    "STRIPE_WEBHOOK_SECRET": ("stripe_webhook_secrets", _names),
    "STRIPE_API_KEY": ("stripe_api_key", _text),
    "STRIPE_API_BASE": ("stripe_api_base", _text),
    "DUES_STRIPE_RATE": ("stripe_rate", _whole(1, 1000)),
    "DUES_STRIPE_TIMEOUT": ("stripe_timeout", _seconds(0.1, 80)),
    "DUES_WEBHOOK_URL": ("webhook_url", _web_address),
    "STRIPE_LIVEMODE": ("stripe_livemode", _one_of("live", "test", "any")),
    "STRIPE_ACCOUNT": ("stripe_account", _names),
    "DUES_API_TOKEN": ("api_tokens", _names),
    "DUES_OPS_PASSWORD": ("ops_password", _text),
    "DUES_TRUSTED_PROVIDERS": ("trusted_providers", _names),
    "DUES_PAUSE": ("pause", _pauses),
    "DUES_SHADOW": ("shadow", _switch),
    "DUES_GRACE_DAYS": ("grace_days", _whole(0, 3650)),
    "DUES_LINK_BY_EMAIL": ("link_by_email", _one_of("off", "verified", "any")),
    "DUES_RETENTION_DAYS": ("retention_days", _whole(30, 36500)),
    "DUES_STALE_SECONDS": ("stale_seconds", _whole(0, 999_999_999)),
    "DUES_CHECKOUT_WAIT": ("checkout_wait", _seconds(0, 10)),
    "DUES_LIST_SIZE": ("list_size", _whole(1, 1000)),
    "DUES_LEASE_SECONDS": ("lease_seconds", _whole(1, 3600)),
    "DUES_SWEEP_SECONDS": ("sweep_seconds", _whole(1, 3600)),
    "DUES_POOL_SIZE": ("pool_size", _whole(1, 100)),
    "DUES_DATABASE_TIMEOUT": ("database_timeout", _seconds(0.1, 60)),
    "DUES_LOCK_TIMEOUT": ("lock_timeout", _seconds(0.1, 600)),
    "DUES_STATEMENT_TIMEOUT": ("statement_timeout", _seconds(0.1, 600)),
    "DUES_IDLE_TIMEOUT": ("idle_timeout", _seconds(0.1, 600)),
}


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read every setting from `environ`; `NAME_FILE` names a file that holds the value of `NAME`.

    Raises SettingsError with all problems at once. Empty values count as not set.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, (field, read) in VARIABLES.items():
        try:
            raw = _raw(environ, name)
            if raw:
                values[field] = read(raw)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{name}_FILE can't be read ({type(error).__name__})")
        except ValueError as error:
            problems.append(f"{name} must be {error}")
    if values.get("env") == "production":
        values.setdefault("stripe_livemode", "live")
    if problems:
        raise SettingsError(problems)
    return Settings(**values)


def _raw(environ: Mapping[str, str], name: str) -> str:
    value, file = environ.get(name, "").strip(), environ.get(f"{name}_FILE", "").strip()
    if value and file:
        raise ValueError(f"given once, but {name} and {name}_FILE are both set")
    return Path(file).read_text(encoding="utf-8").strip() if file else value


def require(settings: Settings, *variables: str) -> Settings:
    """Return `settings` if the process can start with them, else raise SettingsError naming everything that is amiss.

    `variables` are the environment variables that this process cannot do without.
    """
    problems = [
        f"{name} is not set ({name}_FILE may name a file that holds it)"
        for name in variables
        if not getattr(settings, VARIABLES[name][0])
    ]
    if settings.env == "production":
        problems += _unfit_for_production(settings)
    if problems:
        raise SettingsError(problems)
    return settings


def _unfit_for_production(settings: Settings) -> list[str]:
    problems = []
    if DEVELOPMENT_SECRET in settings.stripe_webhook_secrets:
        problems.append("STRIPE_WEBHOOK_SECRET holds the development secret; take the one of your Stripe endpoint")
    if settings.database_url and not _safe_connection(settings.database_url):
        problems.append(
            "DATABASE_URL reaches a remote database without TLS; add ?sslmode=verify-full (or require)",
        )
    return problems


def _safe_connection(url: str) -> bool:
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    # Those of the query are used instead of the one before it.
    hosts = [host for name in ("host", "hostaddr") for value in options.get(name, ()) for host in value.split(",")]
    is_local = all(host in LOCAL_HOSTS or host.startswith("/") for host in [parts.hostname or "", *hosts])
    return is_local or options.get("sslmode", [""])[0] in ENCRYPTED
