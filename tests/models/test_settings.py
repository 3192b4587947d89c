"""Settings: read once, checked, told all at once, and never with a value that may be secret."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from models.database import connect
from models.settings import DEVELOPMENT_SECRET, VARIABLES, Settings, SettingsError, read_settings, require

LOCAL = "postgresql://dues@127.0.0.1/dues"
REMOTE = "postgresql://dues:hush-hush@db.example.com:5432/dues"
SECRET = "hush-hush"

# variable → (what is given, the field, what it becomes). One line for each setting there is.
GIVEN: dict[str, tuple[str, str, Any]] = {
    "DUES_ENV": ("staging", "env", "staging"),
    "DATABASE_URL": ("postgres://a@b/c?sslmode=require", "database_url", "postgresql+psycopg://a@b/c?sslmode=require"),
    "REDIS_URL": ("rediss://:x@h/1", "redis_url", "rediss://:x@h/1"),
    "STRIPE_WEBHOOK_SECRET": ("whsec_a, whsec_b,", "stripe_webhook_secrets", ("whsec_a", "whsec_b")),
    "STRIPE_API_KEY": ("rk_live_1", "stripe_api_key", "rk_live_1"),
    "STRIPE_API_BASE": ("http://127.0.0.1:12111", "stripe_api_base", "http://127.0.0.1:12111"),
    "DUES_STRIPE_RATE": ("80", "stripe_rate", 80),
    "DUES_STRIPE_TIMEOUT": ("2.5", "stripe_timeout", 2.5),
    "DUES_WEBHOOK_URL": ("https://example.com/w", "webhook_url", "https://example.com/w"),
    "STRIPE_LIVEMODE": ("test", "stripe_livemode", "test"),
    "STRIPE_ACCOUNT": ("acct_1,acct_2", "stripe_account", ("acct_1", "acct_2")),
    "DUES_API_TOKEN": ("t1,t2", "api_tokens", ("t1", "t2")),
    "DUES_OPS_PASSWORD": ("open, sesame", "ops_password", "open, sesame"),
    "DUES_TRUSTED_PROVIDERS": ("google, discord", "trusted_providers", ("google", "discord")),
    "DUES_PAUSE": ("grants,processing", "pause", frozenset({"grants", "processing"})),
    "DUES_SHADOW": ("1", "shadow", True),
    "DUES_GRACE_DAYS": ("0", "grace_days", 0),
    "DUES_LINK_BY_EMAIL": ("off", "link_by_email", "off"),
    "DUES_RETENTION_DAYS": ("30", "retention_days", 30),
    "DUES_STALE_SECONDS": ("0", "stale_seconds", 0),
    "DUES_CHECKOUT_WAIT": ("0.5", "checkout_wait", 0.5),
    "DUES_LIST_SIZE": ("1000", "list_size", 1000),
    "DUES_LEASE_SECONDS": ("5", "lease_seconds", 5),
    "DUES_SWEEP_SECONDS": ("7", "sweep_seconds", 7),
    "DUES_POOL_SIZE": ("9", "pool_size", 9),
    "DUES_DATABASE_TIMEOUT": ("0.25", "database_timeout", 0.25),
    "DUES_LOCK_TIMEOUT": ("2", "lock_timeout", 2.0),
    "DUES_STATEMENT_TIMEOUT": ("12.5", "statement_timeout", 12.5),
    "DUES_IDLE_TIMEOUT": ("600", "idle_timeout", 600.0),
}
UNUSABLE = {
    "DUES_ENV": ["prod", "Production"],
    "DATABASE_URL": [
        "mysql://u:hush-hush@h/d",
        "hush-hush",
        "postgresql+asyncpg://u:hush-hush@h/d",
        "postgresql://u:hush-hush@h:port/d",
        "postgresql://u:hush-hush/x@h/d",
        "postgresql://u:hush-hush@[h/d",
    ],
    "DUES_WEBHOOK_URL": ["example.com/w", "ftp://example.com", "https://ada:pw@example.com/", "https:///w"],
    "STRIPE_LIVEMODE": ["true", "LIVE"],
    "DUES_PAUSE": ["process", "grants;repairs"],
    "DUES_SHADOW": ["yes", "2", "true"],
    "DUES_GRACE_DAYS": ["-1", "1.5", "three", "٣", "99999"],
    "DUES_LINK_BY_EMAIL": ["on"],
    "DUES_RETENTION_DAYS": ["29", "0"],
    "DUES_CHECKOUT_WAIT": ["11", "-1"],
    "DUES_LIST_SIZE": ["0", "1001"],
    "DUES_LEASE_SECONDS": ["0"],
    "DUES_SWEEP_SECONDS": ["0"],
    "DUES_POOL_SIZE": ["0", "1e1"],
    "DUES_DATABASE_TIMEOUT": ["0", "nan", "inf", "-1"],
    "DUES_LOCK_TIMEOUT": ["0"],
    "DUES_STATEMENT_TIMEOUT": ["0"],
    "DUES_IDLE_TIMEOUT": ["601"],
}


def problems(environ: Mapping[str, str], *required: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        require(read_settings(environ), *required)
    assert str(raised.value) == "; ".join(raised.value.problems)
    return raised.value.problems


def production(**environ: str) -> Settings:
    return require(read_settings({"DUES_ENV": "production", "DATABASE_URL": LOCAL, **environ}))


def test_every_setting_is_tried_here() -> None:
    assert set(GIVEN) == set(VARIABLES)
    assert {field for _, field, _ in GIVEN.values()} == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("variable", GIVEN)
def test_a_setting_is_read(variable: str) -> None:
    given, field, expected = GIVEN[variable]
    settings = read_settings({variable: f"  {given}\n"})
    assert getattr(settings, field) == expected
    assert type(getattr(settings, field)) is type(expected)
    assert settings == dataclasses.replace(Settings(), **{field: expected})


@pytest.mark.parametrize("variable", GIVEN)
def test_a_setting_may_stand_in_a_file(variable: str, tmp_path: Path) -> None:
    given, field, expected = GIVEN[variable]
    file = tmp_path / "secret"
    file.write_text(f"{given}\n", encoding="utf-8")
    assert getattr(read_settings({f"{variable}_FILE": str(file), variable: ""}), field) == expected


@pytest.mark.parametrize("environ", [{}, dict.fromkeys(VARIABLES, ""), dict.fromkeys(VARIABLES, "  ")])
def test_what_is_not_set_has_the_default_of_the_contract(environ: dict[str, str]) -> None:
    settings = read_settings(environ)
    assert settings == Settings()
    assert (settings.env, settings.stripe_livemode, settings.link_by_email) == ("development", "any", "verified")
    assert (settings.grace_days, settings.retention_days, settings.shadow) == (3, 90, False)
    assert settings.trusted_providers == ("google", "apple", "github")
    assert (settings.stripe_account, settings.api_tokens, settings.pause) == ((), (), frozenset())


def test_time_outs_are_well_below_the_lease() -> None:
    settings = Settings()
    for seconds in (settings.lock_timeout, settings.statement_timeout, settings.idle_timeout):
        assert seconds * 2 < settings.lease_seconds


def test_production_takes_live_events_unless_told_otherwise() -> None:
    assert production().stripe_livemode == "live"
    assert production(STRIPE_LIVEMODE="any").stripe_livemode == "any"


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name in UNUSABLE for value in UNUSABLE[name]])
def test_an_unusable_value_is_named_and_not_repeated(variable: str, value: str) -> None:
    (problem,) = problems({variable: value})
    assert problem.startswith(f"{variable} must be ")
    assert SECRET not in problem


def test_all_problems_are_told_at_once() -> None:
    environ = {variable: values[0] for variable, values in UNUSABLE.items()}
    assert [problem.split()[0] for problem in problems(environ)] == [name for name in VARIABLES if name in UNUSABLE]


def test_what_a_process_cannot_do_without_is_told_at_once() -> None:
    found = problems({"DUES_ENV": "production"}, "DATABASE_URL", "REDIS_URL", "STRIPE_WEBHOOK_SECRET")
    assert [problem.split()[0] for problem in found] == ["DATABASE_URL", "REDIS_URL", "STRIPE_WEBHOOK_SECRET"]
    assert "DATABASE_URL_FILE" in found[0]


def test_a_process_with_all_it_needs_starts_with_the_settings_it_was_given() -> None:
    settings = read_settings({"DATABASE_URL": LOCAL})
    assert require(settings, "DATABASE_URL") is settings


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("another", encoding="utf-8")
    (problem,) = problems({"STRIPE_API_KEY": SECRET, "STRIPE_API_KEY_FILE": str(file)})
    assert "STRIPE_API_KEY_FILE" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"folder"])
def test_a_file_that_cannot_be_read_is_a_problem_like_any_other(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / SECRET
    if content == b"folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    first, second = problems({"STRIPE_API_KEY_FILE": str(file), "DUES_SHADOW": "maybe"})
    assert first.startswith("STRIPE_API_KEY_FILE can't be read")
    assert second.startswith("DUES_SHADOW")
    assert SECRET not in first


def test_an_empty_file_counts_as_not_set(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" \n", encoding="utf-8")
    assert read_settings({"STRIPE_API_KEY_FILE": str(tmp_path / "key")}) == Settings()


def test_nothing_secret_is_shown() -> None:
    secret = {
        "DATABASE_URL": f"postgresql://u:{SECRET}@h/d",
        "REDIS_URL": f"redis://:{SECRET}@h/0",
        "STRIPE_WEBHOOK_SECRET": f"whsec_{SECRET},whsec_2{SECRET}",
        "STRIPE_API_KEY": f"sk_live_{SECRET}",
        "DUES_API_TOKEN": SECRET,
        "DUES_OPS_PASSWORD": SECRET,
    }
    settings = read_settings(secret)
    assert SECRET not in f"{settings!r} {settings!s} {settings}"
    assert SECRET not in " ".join(problems({**secret, "DUES_ENV": "production", "DUES_SHADOW": "x"}))


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().shadow = True  # type: ignore[misc]


# --- production ---------------------------------------------------------------------------------------------------


def test_production_refuses_the_development_secret_among_others_too() -> None:
    (problem,) = problems(
        {"DUES_ENV": "production", "DATABASE_URL": LOCAL, "STRIPE_WEBHOOK_SECRET": f"whsec_x,{DEVELOPMENT_SECRET}"}
    )
    assert problem.startswith("STRIPE_WEBHOOK_SECRET")
    assert DEVELOPMENT_SECRET not in problem


@pytest.mark.parametrize(
    "url",
    [
        REMOTE,
        f"{REMOTE}?sslmode=disable",
        f"{REMOTE}?sslmode=prefer",
        f"{REMOTE}?sslmode=allow",
        "postgresql://u@/d?host=db.example.com",
        "postgresql://u@localhost/d?host=db.example.com",
        "postgresql://u@localhost/d?hostaddr=192.0.2.1",
        "postgresql://u@/d?host=/var/run/postgresql,db.example.com",
        "postgresql://u@/d?host=localhost&host=db.example.com",
        "postgresql://u@127.0.0.1.example.com/d",
        "postgresql://localhost@db.example.com/d",
    ],
)
def test_production_refuses_a_remote_database_without_tls(url: str) -> None:
    (problem,) = problems({"DUES_ENV": "production", "DATABASE_URL": url})
    assert problem.startswith("DATABASE_URL")
    assert SECRET not in problem


@pytest.mark.parametrize(
    "url",
    [
        *(f"{REMOTE}?sslmode={mode}" for mode in ("require", "verify-ca", "verify-full")),
        LOCAL,
        "postgresql://u@localhost:5433/d",
        "postgresql://u@[::1]/d",
        "postgresql:///d",
        "postgresql://u@/d?host=/var/run/postgresql",
    ],
)
def test_production_takes_an_encrypted_or_local_connection(url: str) -> None:
    assert production(DATABASE_URL=url).database_url.endswith(url.removeprefix("postgresql"))


@pytest.mark.parametrize("env", ["development", "staging"])
def test_elsewhere_the_development_secret_and_plain_connections_pass(env: str) -> None:
    environ = {"DUES_ENV": env, "DATABASE_URL": REMOTE, "STRIPE_WEBHOOK_SECRET": DEVELOPMENT_SECRET}
    assert require(read_settings(environ)).env == env


# --- what connections make of them --------------------------------------------------------------------------------


def test_every_connection_is_bounded_in_utc_and_says_that_it_is_dues(database_url: str) -> None:
    settings = read_settings({"DATABASE_URL": database_url, "DUES_LOCK_TIMEOUT": "0.25", "DUES_IDLE_TIMEOUT": "90"})
    engine = connect(settings, application="worker 1")
    expected = {
        "lock_timeout": "250ms",
        "statement_timeout": "20s",
        "idle_in_transaction_session_timeout": "90s",
        "TimeZone": "UTC",
        "default_transaction_isolation": "read committed",
        "application_name": "dues worker 1",
        "dues.session": "on",
    }
    with engine.connect() as connection:
        shown = {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in expected}
    engine.dispose()
    assert shown == expected


def test_options_of_the_url_are_kept_beside_those_of_dues(database_url: str) -> None:
    separator = "&" if "?" in database_url else "?"
    url = f"{database_url}{separator}options=-c%20work_mem%3D7MB%20-c%20TimeZone%3DAsia/Tokyo"
    engine = connect(read_settings({"DATABASE_URL": url}), application="tests")
    with engine.connect() as connection:
        shown = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in ("work_mem", "TimeZone")]
    engine.dispose()
    assert shown == ["7MB", "UTC"]


def test_an_error_of_the_database_does_not_repeat_what_was_sent(database_url: str) -> None:
    engine = connect(read_settings({"DATABASE_URL": database_url}), application="tests")
    with engine.connect() as connection, pytest.raises(Exception, match="no_such_table") as raised:
        connection.execute(text("SELECT :value FROM no_such_table"), {"value": SECRET})
    engine.dispose()
    assert SECRET not in str(raised.value)
