DROP TABLE sync_runs, user_overrides, customer_links, membership_changes, token_ledger, stripe_events,
    stripe_metadata_history, stripe_checkout_sessions, stripe_disputes, stripe_refunds, stripe_charges,
    stripe_invoice_payments, stripe_invoices, payment_history, user_subscriptions, stripe_customers, stripe_prices,
    verification_tokens, sessions, accounts, users, stripe_products;
DROP FUNCTION dues_disown, dues_link_is_due, dues_ban_is_due, dues_decision_is_due, dues_remember_address, dues_book_role,
    dues_book_tokens, dues_email_changed, dues_append_only, dues_add_to_balance, dues_touch, dues_email_hash,
    dues_is_writing;
DROP TYPE membership_status;
DROP TYPE user_role;
