"""Webhook endpoints as JSON."""

from typing import Any

from simulator.objects import WebhookEndpoint

Json = dict[str, Any]


def webhook_endpoint(endpoint: WebhookEndpoint, api_version: str) -> Json:
    """An endpoint; its secret is shown only in the answer to its creation."""
    del api_version
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "api_version": endpoint.api_version,
        "application": None,
        "created": endpoint.created,
        "description": endpoint.description,
        "enabled_events": list(endpoint.enabled_events),
        "livemode": endpoint.livemode,
        "metadata": dict(endpoint.metadata),
        "status": endpoint.status,
        "url": endpoint.url,
    }
