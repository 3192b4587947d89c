"""Webhook endpoints: where events are posted, in which shape, signed with what, and what is still owed to them."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from simulator.calendar import DAY
from simulator.ids import token
from simulator.objects import Event, WebhookEndpoint
from simulator.world import InvalidRequestError, World, api_call, at_once, merged


class Endpoints(World):
    """Who is told. Nobody posts anything here: `delivery.py` does, and tells what was accepted."""

    def __init__(self, seed: int | str, clock: int, *, livemode: bool = False, burst: bool = True) -> None:
        super().__init__(seed, clock, livemode=livemode, burst=burst)
        self._owed: dict[str, set[str]] = defaultdict(set)

    @api_call
    def create_webhook_endpoint(  # noqa: PLR0913 - Stripe's own parameters
        self,
        url: str,
        enabled_events: Sequence[str] = ("*",),
        *,
        api_version: str | None = None,
        payload: str = "snapshot",
        secret: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> WebhookEndpoint:
        """A new endpoint, owed every event of these types from now on ("*": all of them).

        Events are rendered in `api_version`, fixed for ever, or else in the account's default. `payload` "thin" names
        the object and leaves it out. The first of `secrets` is made up unless it is given.
        """
        if payload not in {"snapshot", "thin"}:
            raise InvalidRequestError(f"A payload is snapshot or thin, not {payload}")
        endpoint = WebhookEndpoint(
            id=self.new_id("we_1"),
            created=self.now,
            livemode=self.livemode,
            url=url,
            enabled_events=tuple(enabled_events),
            api_version=api_version,
            payload=payload,
            description=description,
            metadata=merged({}, metadata),
            secrets=((secret or f"whsec_{token(self.new_id('secret_'), 32)}", None),),
        )
        return self._create(endpoint)

    @api_call
    def update_webhook_endpoint(
        self, id: str, *, disabled: bool | None = None, metadata: Mapping[str, str] | None = None, **changes: Any
    ) -> WebhookEndpoint:
        """Change url, enabled_events, description or metadata, or disable and enable it again."""
        endpoint = self.webhook_endpoints[id]
        if disabled is not None:
            changes["status"] = "disabled" if disabled else "enabled"
        if "enabled_events" in changes:
            changes["enabled_events"] = tuple(changes["enabled_events"])
        return self._change(endpoint, metadata=merged(endpoint.metadata, metadata), **changes)

    @api_call
    def delete_webhook_endpoint(self, id: str) -> None:
        """Delete it; what is still owed to it is never delivered."""
        self._remove(self.webhook_endpoints[id])

    @api_call
    def roll_secret(self, id: str, *, secret: str | None = None, expires_in: int = DAY) -> WebhookEndpoint:
        """A new secret; the present one goes on signing beside it for `expires_in` seconds (0: ends at once)."""
        endpoint = self.webhook_endpoints[id]
        kept = tuple(
            (old, min(until or self.now + expires_in, self.now + expires_in)) for old, until in endpoint.secrets
        )
        fresh = secret or f"whsec_{token(self.new_id('secret_'), 32)}"
        return self._change(endpoint, secrets=((fresh, None), *kept))

    @at_once
    def disable_failing_endpoint(self, id: str) -> WebhookEndpoint:
        """What Stripe does by itself after days of failures, and tells by e-mail only: no event says so."""
        return self._change(self.webhook_endpoints[id], status="disabled")

    def secrets_of(self, id: str, at: int | None = None) -> list[str]:
        """The secrets that sign at this moment (Unix seconds; now unless given), the newest first."""
        at = self.now if at is None else at
        return [secret for secret, until in self.webhook_endpoints[id].secrets if until is None or at < until]

    def owed(self, event: str) -> Collection[str]:
        """The endpoints (ids) that have not accepted this event."""
        return frozenset(self._owed.get(event, ()))

    @at_once
    def accept(self, event: str, endpoint: str) -> None:
        """Note that the endpoint answered 2xx to the event."""
        self._owed[event].discard(endpoint)

    def _record(self, event: Event) -> None:
        super()._record(event)
        wanting = (one for one in self.webhook_endpoints.values() if one.status == "enabled" and one.wants(event.type))
        if ids := {endpoint.id for endpoint in wanting}:
            self._owed[event.id] = ids
