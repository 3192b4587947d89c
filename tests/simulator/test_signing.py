import json
from pathlib import Path

import pytest
import stripe
from stripe import WebhookSignature

from simulator.signing import sign

VECTOR = json.loads((Path(__file__).parents[1] / "fixtures" / "signature_vector.json").read_text(encoding="utf-8"))
BODY = VECTOR["raw_body"].encode()


def test_the_known_vector_is_signed_alike() -> None:
    assert sign(BODY, [VECTOR["secret_new"]], VECTOR["t"]) == VECTOR["header"]


def test_a_rolled_secret_gives_one_v1_per_secret_in_the_order_given() -> None:
    header = sign(BODY, [VECTOR["secret_old"], VECTOR["secret_new"]], VECTOR["t"], v0=True)
    known, _, fake = VECTOR["header_during_roll"].rpartition(",v0=")
    assert header.startswith(f"{known},v0=")
    assert len(header.rpartition(",v0=")[2]) == len(fake)


def test_stripes_own_library_accepts_the_header_for_either_secret() -> None:
    header = sign(BODY, [VECTOR["secret_old"], VECTOR["secret_new"]], VECTOR["t"], v0=True)
    for secret in (VECTOR["secret_old"], VECTOR["secret_new"]):
        assert WebhookSignature.verify_header(VECTOR["raw_body"], header, secret)
    with pytest.raises(stripe.SignatureVerificationError):
        WebhookSignature.verify_header(VECTOR["raw_body"], header, "whsec_other")
