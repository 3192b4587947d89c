"""`expand`: ids become objects, and what is left out otherwise is put in (docs.stripe.com/expand)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulator import objects
from simulator.api import parameters
from simulator.api.errors import invalid
from simulator.api.parameters import Parameters
from simulator.objects import Thing
from simulator.render import render
from simulator.render.checkout import line_item
from simulator.state import Stripe

Json = dict[str, Any]

LEVELS = 4

# The kind of object whose id stands in the field of this name.
KINDS: Mapping[str, type[Thing]] = {
    "charge": objects.Charge,
    "customer": objects.Customer,
    "default_price": objects.Price,
    "invoice": objects.Invoice,
    "latest_charge": objects.Charge,
    "latest_invoice": objects.Invoice,
    "payment_intent": objects.PaymentIntent,
    "price": objects.Price,
    "product": objects.Product,
    "subscription": objects.Subscription,
}


def shown(stripe: Stripe, kind: type[Thing], id: str, api_version: str) -> Json | None:
    """The object as the API shows it: a stub if it was deleted, None if it never was."""
    thing = stripe.find(kind, id)
    if thing is None:
        gone = stripe.find_deleted(kind, id)
        return None if gone is None else stub(gone, api_version)
    return stub(thing, api_version) if getattr(thing, "deleted", False) else render(thing, api_version)


def stub(thing: Thing, api_version: str) -> Json:
    """All that the API says of a deleted object."""
    return {"id": thing.id, "object": render(thing, api_version)["object"], "deleted": True}


def paths_of(given: Parameters) -> list[list[str]]:
    """The expansions that a request asks for, each as the names on its way."""
    paths = [path.split(".") for path in parameters.texts(given.get("expand", []), "expand")]
    for path in paths:
        if len(path) > LEVELS:
            raise invalid(f"You cannot expand more than {LEVELS} levels of a property: {'.'.join(path)}", "expand")
    return paths


class Expander:
    """Expands rendered objects in place, from the state as it is now."""

    def __init__(self, stripe: Stripe, api_version: str) -> None:
        self._stripe = stripe
        self._api_version = api_version
        self._included: Mapping[tuple[str, str], Callable[[Json], Json]] = {
            ("charge", "refunds"): self._refunds,
            ("checkout.session", "line_items"): self._line_items,
            ("invoice", "payments"): self._payments,
        }

    def expand(self, node: Any, path: Sequence[str]) -> None:
        """Follow one path from `node`; raises ApiError where it leads nowhere."""
        if isinstance(node, list):
            for one in node:
                self.expand(one, path)
            return
        if not path or node is None:
            return
        name, rest = path[0], path[1:]
        include = self._included.get((node.get("object", ""), name))
        if include is not None and name not in node:
            node[name] = include(node)
        if name not in node or (isinstance(node[name], str) and name not in KINDS):
            raise invalid(f"This property cannot be expanded ({name}).", "expand")
        if isinstance(node[name], str):
            node[name] = shown(self._stripe, KINDS[name], node[name], self._api_version) or node[name]
        if isinstance(node[name], (dict, list)):
            self.expand(node[name], rest)

    def _list(self, things: Sequence[Thing], url: str) -> Json:
        data = [render(thing, self._api_version) for thing in things]
        return {"object": "list", "data": data[:10], "has_more": len(data) > 10, "url": url}

    def _payments(self, invoice: Json) -> Json:
        payments = [one for one in self._stripe.invoice_payments.values() if one.invoice == invoice["id"]]
        return self._list(payments, f"/v1/invoice_payments?invoice={invoice['id']}")

    def _refunds(self, charge: Json) -> Json:
        refunds = [one for one in self._stripe.refunds.values() if one.charge == charge["id"]]
        return self._list(refunds[::-1], f"/v1/charges/{charge['id']}/refunds")

    def _line_items(self, session: Json) -> Json:
        items = line_items(self._stripe, session["id"], self._api_version)
        url = f"/v1/checkout/sessions/{session['id']}/line_items"
        return {"object": "list", "data": items[:10], "has_more": len(items) > 10, "url": url}


def line_items(stripe: Stripe, id: str, api_version: str) -> list[Json]:
    """What is bought in a session; a price that was deleted since is shown as it was."""
    session, bought = stripe.sessions[id], []
    for number, (price_id, _) in enumerate(session.prices):
        price = stripe.find(objects.Price, price_id) or stripe.find_deleted(objects.Price, price_id)
        if price is not None:
            product = stripe.find(objects.Product, price.product)
            description = product.name if product else price.product
            bought.append(line_item(session, number, price, description, api_version))
    return bought
