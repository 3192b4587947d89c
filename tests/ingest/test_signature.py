from __future__ import annotations

import json
import time
from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from ingest.signature import TOLERANCE, SignatureError, verified_by
from simulator.signing import sign, signature
from tests.support import ROOT

NOW = 1_793_520_000
VECTOR: dict[str, Any] = json.loads((ROOT / "tests/fixtures/signature_vector.json").read_text(encoding="utf-8"))
BODY = VECTOR["raw_body"].encode()


def reason(body: bytes, header: bytes, secrets: list[bytes], now: float = NOW) -> str:
    with pytest.raises(SignatureError) as caught:
        verified_by(body, header, secrets, now)
    return caught.value.reason


def stripe_accepts(body: bytes, header: str, secret: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(body, header, secret, TOLERANCE))
    except (stripe.SignatureVerificationError, TypeError):
        return False


def we_accept(body: bytes, header: str, secret: str) -> bool:
    try:
        return verified_by(body, header.encode("utf-8", "surrogatepass"), [secret.encode()], time.time()) == 0
    except SignatureError:
        return False


def test_the_checked_vector_is_accepted_with_its_new_secret() -> None:
    assert verified_by(BODY, VECTOR["header"].encode(), [b"whsec_new"], VECTOR["t"]) == 0


@pytest.mark.parametrize("secret", ["secret_new", "secret_old"])
def test_while_a_secret_is_rolled_either_is_enough(secret: str) -> None:
    header = VECTOR["header_during_roll"].encode()
    assert verified_by(BODY, header, [b"whsec_another_endpoint", VECTOR[secret].encode()], VECTOR["t"]) == 1


def test_a_body_with_one_byte_changed_is_refused() -> None:
    assert reason(BODY.replace(b"evt_1", b"evt_2"), VECTOR["header"].encode(), [b"whsec_new"]) == "wrong"


def test_a_signature_of_another_scheme_is_ignored() -> None:
    genuine = signature(BODY, "whsec_new", NOW)
    assert reason(BODY, f"t={NOW},v0={genuine}".encode(), [b"whsec_new"]) == "absent"
    assert reason(BODY, f"t={NOW},v0={genuine},v1=0".encode(), [b"whsec_new"]) == "wrong"


@pytest.mark.parametrize(("age", "accepted"), [(0, True), (300, True), (301, False), (-86400, True)])
def test_only_what_is_older_than_300_seconds_is_stale(age: int, accepted: bool) -> None:
    header = sign(BODY, ["whsec_new"], NOW - age).encode()
    if accepted:
        assert verified_by(BODY, header, [b"whsec_new"], NOW) == 0
    else:
        assert reason(BODY, header, [b"whsec_new"]) == "stale"


@pytest.mark.parametrize(
    "header",
    [b"", b",", b"=", b"t", b"t=,v1=", b"v1=00", b"t=1", b"t=1e3,v1=00", b"t=-1,v1=00", b"t=1_0,v1=00", b" t=1,v1=0",
     b"t=" + b"9" * 5000 + b",v1=00", b"\x00\xff\xfe", b"t=\xd9\xa1,v1=00", b"v1," * 100_000, b"t=1;v1=00"],
)  # fmt: skip
def test_a_header_without_a_timestamp_and_a_signature_counts_as_absent(header: bytes) -> None:
    assert reason(BODY, header, [b"whsec_new"]) == "absent"


def test_signatures_that_are_no_signatures_are_wrong() -> None:
    assert reason(BODY, b"t=1,v1=\xff\xfe,v1=,v1=\x00," + b"v1=0," * 10_000, [b"whsec_new"]) == "wrong"


signed = st.builds(
    lambda body, secret, age: (body.encode(), sign(body.encode(), [secret], int(time.time()) - age), secret),
    st.text(st.characters(codec="utf-8"), max_size=200),
    st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=30),
    st.sampled_from([0, 100, 290, 320, 10_000, -1000]),
)


@given(signed, st.sampled_from(["", ",v0=abc", ",v1=00", ",other=1", ",t=1", ",v1=ü"]), st.booleans())
def test_it_agrees_with_stripes_library(request_: tuple[bytes, str, str], more: str, other_secret: bool) -> None:
    body, header, secret = request_
    used = f"{secret}x" if other_secret else secret
    expected = stripe_accepts(body, f"{header}{more}", used)
    assert we_accept(body, f"{header}{more}", used) == (expected or (more == ",v1=ü" and we_accept(body, header, used)))


@given(st.binary(max_size=100), st.text(max_size=80))
def test_it_accepts_no_header_that_stripes_library_refuses(body: bytes, header: str) -> None:
    assert not we_accept(body, header, "whsec_secret")
