import io
import json
import subprocess
import sys

import pytest

from simulator.cli import main
from tests.simulator.test_delivery import Endpoint, always_200


def run(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    return main(arguments, out), out.getvalue()


def test_printed_events_are_json_lines_and_the_same_every_time() -> None:
    status, first = run("print", "--story", "membership", "--clock", "1793520000")
    assert (status, first) == run("print", "--story", "membership", "--clock", "1793520000")
    events = [json.loads(line) for line in first.splitlines()]
    assert events[0]["type"] == "product.created"
    assert events[-1]["type"] == "customer.subscription.deleted"


def test_users_and_version_are_as_given() -> None:
    _, out = run(
        "print", "--story", "history", "--customers", "1", "--user", "u1=me@example.com",
        "--api-version", "2025-02-24.acacia",
    )  # fmt: skip
    events = [json.loads(line) for line in out.splitlines()]
    assert {event["api_version"] for event in events} == {"2025-02-24.acacia"}
    customers = [event["data"]["object"] for event in events if event["type"] == "customer.created"]
    assert customers[0]["email"] == "me@example.com"


def test_a_mistaken_user_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("print", "--user", "u1")
    assert stopped.value.code == 2
    assert "expected ID=EMAIL" in capsys.readouterr().err


def test_a_story_is_told_while_it_is_delivered() -> None:
    endpoint = Endpoint(always_200)
    try:
        status, out = run("deliver", "--url", endpoint.url, "--secret", "whsec_practice")
        assert status == 0
        assert "A payment fails: " in out
        assert out.endswith(f"posted {len(endpoint.accepted)}, accepted {len(endpoint.accepted)}\n")
        told = len(endpoint.accepted)
        status, out = run(
            "deliver", "--url", endpoint.url, "--secret", "whsec_practice", "--shuffle", "--duplicates", "0.2", "--json"
        )
    finally:
        endpoint.stop()
    assert (status, json.loads(out)["posted"]) == (0, len(endpoint.accepted) - told)


def test_what_could_not_be_delivered_is_named_and_the_exit_status_is_1() -> None:
    status, out = run(
        "deliver",
        "--url",
        "http://127.0.0.1:9/",
        "--secret",
        "s",
        "--attempts",
        "1",
        "--shuffle",
        "--clock",
        "1793520000",
    )
    assert status == 1
    assert "given up: evt_" in out


def test_help_shows_an_example_and_a_closed_pipe_is_no_error() -> None:
    shown = subprocess.run([sys.executable, "-m", "simulator", "--help"], capture_output=True, text=True, check=True)
    assert "python -m simulator deliver --url" in shown.stdout
    command = [sys.executable, "-m", "simulator", "print"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as printing:
        assert printing.stdout
        assert printing.stderr
        printing.stdout.readline()
        printing.stdout.close()
        assert printing.stderr.read() == b""
        assert printing.wait(10) == 0
