"""Webhook endpoints over the API: the one kind of object that is not only read."""

from collections.abc import Mapping
from typing import Any

from simulator.api import parameters
from simulator.api.call import Call, Handler, Json
from simulator.api.errors import invalid, missing
from simulator.objects import WebhookEndpoint
from simulator.render import render
from simulator.versions import VERSIONS

CHANGEABLE = {"description": parameters.text, "enabled_events": parameters.texts, "url": parameters.text}


def create(call: Call) -> Json:
    """A new endpoint; this answer alone shows its secret."""
    parameters.known(call.given, [*CHANGEABLE, "api_version", "metadata"])
    if "url" not in call.given or "enabled_events" not in call.given:
        raise invalid("Missing required param: url and enabled_events.", "url", "parameter_missing")
    version = call.given.get("api_version")
    if version not in {None, *VERSIONS}:
        raise invalid(f"Invalid API version: {version}", "api_version")
    endpoint = call.stripe.create_webhook_endpoint(**_changes(call), api_version=version)
    return {**render(endpoint, call.api_version), "secret": endpoint.secrets[0][0]}


def update(call: Call, id: str) -> Json:
    """Change an endpoint, or enable and disable it."""
    _there(call, id)
    parameters.known(call.given, [*CHANGEABLE, "disabled", "metadata"])
    changes = _changes(call)
    if "disabled" in call.given:
        changes["disabled"] = parameters.boolean(call.given["disabled"], "disabled")
    return render(call.stripe.update_webhook_endpoint(id, **changes), call.api_version)


def delete(call: Call, id: str) -> Json:
    """Delete an endpoint."""
    _there(call, id)
    call.stripe.delete_webhook_endpoint(id)
    return {"id": id, "object": "webhook_endpoint", "deleted": True}


def _there(call: Call, id: str) -> None:
    if call.stripe.find(WebhookEndpoint, id) is None:
        raise missing("webhook endpoint", id)


def _changes(call: Call) -> dict[str, Any]:
    changes = {name: read(call.given[name], name) for name, read in CHANGEABLE.items() if name in call.given}
    metadata = call.given.get("metadata", {})
    if not isinstance(metadata, Mapping):
        raise invalid("Invalid object", "metadata")
    return {**changes, "metadata": metadata}


def routes() -> dict[str, Handler]:
    """Handlers by method and path."""
    return {
        "POST /v1/webhook_endpoints": create,
        "POST /v1/webhook_endpoints/:id": update,
        "DELETE /v1/webhook_endpoints/:id": delete,
    }
