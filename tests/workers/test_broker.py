from __future__ import annotations

import pytest
from kombu.connection import Connection

from workers.broker import broker


@pytest.mark.parametrize(
    ("given", "kombus"),
    [
        ("redis://:secret@127.0.0.1:6379/3", "redis://:secret@127.0.0.1:6379/3"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix://:p%40ss@/run/redis.sock?db=4", "redis+socket://:p%40ss@/run/redis.sock?virtual_host=4"),
        ("unix:///run/redis.sock?password=p@ss", "redis+socket://:p%40ss@/run/redis.sock?virtual_host=0"),
        ("rediss://redis.example.com/0", "rediss://redis.example.com/0?ssl_cert_reqs=required"),
        ("rediss://redis.example.com/0?ssl_cert_reqs=none", "rediss://redis.example.com/0?ssl_cert_reqs=none"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
    ],
)
def test_addresses_of_redis_become_kombus(given: str, kombus: str) -> None:
    assert broker(given)[0] == kombus


def test_every_option_fails_fast() -> None:
    assert broker("redis://")[1] == {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "max_retries": 0}


def test_sentinels_name_their_master_in_the_address() -> None:
    url, options = broker("sentinel://:pw@one:26379/0?master_name=dues;sentinel://two:26379/0")
    assert url == "sentinel://:pw@one:26379/0;sentinel://two:26379/0"
    assert options["master_name"] == "dues"
    connection = Connection(url, transport_options=options)  # type: ignore[no-untyped-call]
    assert connection.alt == ["sentinel://:pw@one:26379/0", "sentinel://two:26379/0"]


def test_a_certificate_is_checked_unless_the_address_says_otherwise() -> None:
    import ssl

    secure = Connection(broker("rediss://redis.example.com/0")[0])  # type: ignore[no-untyped-call]
    assert secure.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
