"""Money given back by the merchant, all of it or a part, and refunds that the customer's bank sends back days later."""

from collections.abc import Mapping

from simulator.objects import Charge, Refund
from simulator.payments import Payments
from simulator.world import InvalidRequestError, api_call, at_once, merged


class Refunds(Payments):
    """Charges that are undone."""

    @api_call
    def refund(
        self,
        payment: str,
        amount: int | None = None,
        *,
        reason: str | None = "requested_by_customer",
        metadata: Mapping[str, str] | None = None,
    ) -> Refund:
        """Give back what is left of a charge, or `amount` of it; `payment` is the charge's id or its PaymentIntent's.

        Neither the PaymentIntent nor the invoice changes, and a subscription goes on.
        """
        charge = self._paid_charge(payment)
        left = charge.amount - charge.amount_refunded
        amount = left if amount is None else amount
        if charge.disputed:
            raise InvalidRequestError(f"Charge {charge.id} has been charged back; cannot issue a refund.")
        if left == 0:
            raise InvalidRequestError(f"Charge {charge.id} has already been refunded.")
        if not 0 < amount <= left:
            raise InvalidRequestError(f"Refund amount ({amount}) is not between 1 and what is left ({left})")
        refund = Refund(
            id=self.new_id("re_3"),
            created=self.now,
            livemode=self.livemode,
            amount=amount,
            currency=charge.currency,
            charge=charge.id,
            customer=charge.customer,
            payment_intent=charge.payment_intent,
            payment_method=charge.payment_method,
            reason=reason,
            balance_transaction=self.new_id("txn_3"),
            metadata=merged({}, metadata),
        )
        self._create(refund, "refund.created")
        self._change(charge, "charge.refunded", amount_refunded=charge.amount_refunded + amount)
        # The card network's number, by which the customer's bank finds the money, is known only afterwards.
        return self._change(refund, "refund.updated", reference=_reference(refund.id))

    @at_once
    def fail_refund(self, id: str, *, reason: str = "expired_or_canceled_card") -> Refund:
        """The bank cannot take the money and sends it back: the charge is refunded by so much less."""
        refund = self.refunds[id]
        if refund.status != "succeeded":
            raise InvalidRequestError(f"Refund {id} is {refund.status}")
        returned = self.new_id("txn_3")
        refund = self._change(
            refund, "refund.failed", status="failed", failure_reason=reason, failure_balance_transaction=returned
        )
        charge = self.charges[refund.charge]
        self._change(charge, "charge.updated", amount_refunded=charge.amount_refunded - refund.amount)
        return refund

    def _paid_charge(self, payment: str) -> Charge:
        intent = self.payment_intents.get(payment)
        charge = self.charges.get(intent.latest_charge or "" if intent else payment)
        if charge is None or charge.status != "succeeded":
            raise InvalidRequestError(f"No successful charge: '{payment}'")
        return charge


def _reference(id: str) -> str:
    """An acquirer reference number: 23 digits that stand for the refund."""
    return f"{int.from_bytes(id.encode()) % 10**23:023d}"
