"""PaymentIntents and charges."""

from collections.abc import Mapping

from simulator.customers import Customers
from simulator.objects import Charge, PaymentIntent


class Payments(Customers):
    """How money moves."""

    def _open_intent(  # noqa: PLR0913 - what makes a PaymentIntent
        self,
        amount: int,
        currency: str,
        customer: str | None,
        *,
        description: str | None,
        invoice: str | None = None,
        metadata: Mapping[str, str] | None = None,
        setup_future_usage: str | None = "off_session",
    ) -> PaymentIntent:
        intent = PaymentIntent(
            id=self.new_id("pi_3"),
            created=self.now,
            livemode=self.livemode,
            amount=amount,
            currency=currency,
            customer=customer,
            description=description,
            invoice=invoice,
            metadata=dict(metadata or {}),
            setup_future_usage=setup_future_usage,
        )
        return self._create(intent, "payment_intent.created")

    def _charge(
        self, intent: PaymentIntent, payment_method: str, *, ok: bool, email: str | None = None
    ) -> PaymentIntent:
        """Charge a card: the intent succeeds, or is back at `requires_payment_method` with its error."""
        charge = Charge(
            id=self.new_id("ch_3"),
            created=self.now,
            livemode=self.livemode,
            amount=intent.amount,
            currency=intent.currency,
            customer=intent.customer,
            description=intent.description,
            email=email,
            invoice=intent.invoice,
            payment_intent=intent.id,
            payment_method=payment_method,
            status="succeeded" if ok else "failed",
            metadata=intent.metadata,
        )
        self._create(charge, "charge.succeeded" if ok else "charge.failed")
        if not ok:
            return self._change(
                intent,
                "payment_intent.payment_failed",
                status="requires_payment_method",
                latest_charge=charge.id,
                payment_method=None,
                failed_payment_method=payment_method,
            )
        intent = self._change(
            intent,
            "payment_intent.succeeded",
            status="succeeded",
            amount_received=intent.amount,
            latest_charge=charge.id,
            payment_method=payment_method,
            failed_payment_method=None,
        )
        # Capture is asynchronous since 2024-04-10: the balance transaction is known only afterwards.
        self._change(charge, "charge.updated", balance_transaction=self.new_id("txn_3"))
        return intent
