"""A Stripe to practise on: it knows what Stripe does and nothing of who listens."""
