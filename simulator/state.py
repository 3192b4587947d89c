"""The simulated Stripe as a whole.

Its layers are, from the ground up: world (objects, clock, events) → endpoints → catalog → customers → payments →
refunds → disputes → invoices → subscriptions → prorations → checkout.
"""

from simulator.checkout import Checkout


class Stripe(Checkout):
    """A Stripe account: `Stripe(seed, clock)` with the clock in Unix seconds.

    Methods do what the API, the Dashboard or a buyer does; `advance(to)` lets time pass, which renews, retries,
    expires and ends what is due. `events` holds all that happened, in the true order; the objects are in
    `products`, `prices`, `customers`, `subscriptions`, `invoices`, `charges`, … by id.
    """
