"""One request that is let in, with what its handler needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.api.parameters import Parameters
from simulator.state import Stripe

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Where, in which API version, and with which parameters of query and body."""

    stripe: Stripe
    api_version: str
    given: Parameters


# A handler is called with the ids of the path, and raises ApiError to refuse.
Handler = Callable[..., Json]
