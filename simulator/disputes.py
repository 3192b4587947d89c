"""Chargebacks: a cardholder tells the bank that a charge was wrong, the bank takes the money, and somebody wins."""

from simulator.calendar import DAY
from simulator.objects import BalanceTransaction, Dispute
from simulator.refunds import Refunds
from simulator.world import InvalidRequestError, api_call, at_once

UPDATED = "charge.dispute.updated"
ANSWERABLE = ("needs_response", "under_review")
OUTCOMES = ("won", "lost")

EVIDENCE_DAYS = 10
FEE = 1500


class Disputes(Refunds):
    """Charges that are claimed back."""

    @at_once
    def dispute(self, payment: str, *, reason: str = "fraudulent") -> Dispute:
        """Claim back what is left of a charge, once; `payment` is the charge's id or its PaymentIntent's.

        The money is withdrawn at once. No subscription changes: canceling it is a setting of the merchant's.
        """
        charge = self._paid_charge(payment)
        left = charge.amount - charge.amount_refunded
        if charge.disputed or left == 0:
            raise InvalidRequestError(f"Charge {charge.id} is disputed or refunded already")
        dispute = Dispute(
            id=self.new_id("dp_1"),
            created=self.now,
            livemode=self.livemode,
            amount=left,
            currency=charge.currency,
            charge=charge.id,
            payment_intent=charge.payment_intent,
            reason=reason,
            due_by=self.now + EVIDENCE_DAYS * DAY,
        )
        self._create(dispute, "charge.dispute.created")
        dispute = self._move(dispute, "charge.dispute.funds_withdrawn", -left, FEE)
        self._change(charge, "charge.updated", disputed=True)
        return dispute

    @api_call
    def submit_evidence(self, id: str) -> Dispute:
        """The merchant's answer, which the bank then reviews."""
        dispute = self._undecided(id)
        return self._change(dispute, UPDATED, status="under_review", submissions=dispute.submissions + 1)

    @at_once
    def close_dispute(self, id: str, outcome: str) -> Dispute:
        """The bank decides: "won" gives the merchant the money back, "lost" does not. The charge stays `disputed`."""
        if outcome not in OUTCOMES:
            raise InvalidRequestError(f"A dispute ends won or lost, not {outcome}")
        dispute = self._change(self._undecided(id), "charge.dispute.closed", status=outcome)
        if outcome == "lost":
            return dispute
        return self._move(dispute, "charge.dispute.funds_reinstated", dispute.amount, 0)

    def _undecided(self, id: str) -> Dispute:
        dispute = self.disputes[id]
        if dispute.status not in ANSWERABLE:
            raise InvalidRequestError(f"Dispute {id} is {dispute.status}")
        return dispute

    def _move(self, dispute: Dispute, event_type: str, amount: int, fee: int) -> Dispute:
        """Book money between the merchant and the bank."""
        moved = BalanceTransaction(
            id=self.new_id("txn_1"),
            created=self.now,
            livemode=self.livemode,
            amount=amount,
            fee=fee,
            currency=dispute.currency,
            source=dispute.id,
            description=f"Chargeback {'withdrawal' if amount < 0 else 'reversal'} for {dispute.charge}",
        )
        return self._change(dispute, event_type, balance_transactions=(*dispute.balance_transactions, moved))
