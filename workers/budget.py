"""How often Stripe may be asked by all workers together: a bucket in Redis that fills at a steady rate.

What a person waits for may empty it; what can wait leaves half of it. With Redis away nobody is held back: then Stripe
itself says when it is too much.
"""

from __future__ import annotations

from workers.broker import Asking

KEY = "dues:stripe:budget"
# Nobody obeys a "come back tomorrow" for all workers.
LONGEST_PAUSE = 60.0

# Redis' clock is the one that all share. A full bucket holds what comes in half a second, at least two: what does not
# wait for a person must find one more than it leaves.
_TAKE = """
local rate, is_urgent = tonumber(ARGV[1]), ARGV[2] == '1'
local most = math.max(2, rate / 2)
local left = is_urgent and 0 or most / 2
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local elapsed = math.max(0, now - (tonumber(held[2]) or now))
local tokens = math.min(most, (tonumber(held[1]) or most) + elapsed * rate)
local wait = math.max(0, (left + 1 - tokens) / rate)
if wait == 0 then tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], 600)
return string.format('%.6f', wait)
"""

_DRAIN = """
local clock = redis.call('TIME')
local tokens = -tonumber(ARGV[1]) * tonumber(ARGV[2])
local now = string.format('%.6f', clock[1] + clock[2] / 1000000)
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', now)
redis.call('EXPIRE', KEYS[1], 600)
"""


class Budget:
    """The budget as this process asks for it; `rate` in requests per second, of all processes together."""

    def __init__(self, redis_url: str, rate: int) -> None:
        self._asking = Asking(redis_url)
        self._rate = rate

    def take(self, *, urgent: bool) -> float:
        """Take one request: 0.0 if it may be made now, else the seconds after which to ask again."""
        return float(self._ask(_TAKE, str(int(urgent))) or 0)

    def drain(self, seconds: float) -> None:
        """Let nobody ask for `seconds`: Stripe has said that it was too much."""
        self._ask(_DRAIN, str(min(seconds, LONGEST_PAUSE)))

    def close(self) -> None:
        """Let go of Redis."""
        self._asking.close()

    def _ask(self, script: str, argument: str) -> bytes | None:
        answer: bytes | None = self._asking.ask(lambda redis: redis.eval(script, 1, KEY, str(self._rate), argument))
        return answer
