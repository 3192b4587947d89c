-- Every table of CONTRACT §4; models/tables.py says the same to Python and `dues db check` compares the two.

CREATE TYPE user_role AS ENUM ('USER', 'PREMIUM', 'ADMIN', 'BANNED');
CREATE TYPE membership_status AS ENUM ('ACTIVE', 'INACTIVE', 'CANCELED', 'PAST_DUE');

CREATE TABLE stripe_products (
    id text COLLATE "C" NOT NULL,
    name text,
    description text,
    active boolean,
    default_price_id text COLLATE "C",
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_products_pkey PRIMARY KEY (id)
);

CREATE TABLE users (
    id text COLLATE "C" NOT NULL,
    email text,
    name text,
    email_verified timestamptz(3),
    image text,
    role user_role NOT NULL DEFAULT 'USER',
    stripe_product_id text COLLATE "C",
    membership_status membership_status NOT NULL DEFAULT 'ACTIVE',
    tokens integer NOT NULL DEFAULT 0 CONSTRAINT users_tokens_check CHECK (tokens >= 0),
    tokens_expires_at timestamptz(3),
    grace_until timestamptz(3),
    next_change_at timestamptz(3) DEFAULT now(),
    email_changed_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_email_key UNIQUE (email),
    CONSTRAINT users_stripe_product_id_fkey FOREIGN KEY (stripe_product_id) REFERENCES stripe_products (id) ON DELETE SET NULL
);
CREATE UNIQUE INDEX users_lower_email_key ON users (lower(email));
CREATE INDEX users_next_change_at_id_idx ON users (next_change_at, id);
CREATE INDEX users_stripe_product_id_idx ON users (stripe_product_id);

CREATE TABLE accounts (
    id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    type text NOT NULL,
    provider text NOT NULL,
    provider_account_id text NOT NULL,
    refresh_token text,
    access_token text,
    expires_at integer,
    token_type text,
    scope text,
    id_token text,
    session_state text,
    refresh_token_expires_in integer,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT accounts_pkey PRIMARY KEY (id),
    CONSTRAINT accounts_provider_provider_account_id_key UNIQUE (provider, provider_account_id),
    CONSTRAINT accounts_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX accounts_user_id_idx ON accounts (user_id);

CREATE TABLE sessions (
    id text COLLATE "C" NOT NULL,
    session_token text NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    expires timestamptz(3) NOT NULL,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT sessions_pkey PRIMARY KEY (id),
    CONSTRAINT sessions_session_token_key UNIQUE (session_token),
    CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX sessions_user_id_idx ON sessions (user_id);

CREATE TABLE verification_tokens (
    identifier text NOT NULL,
    token text NOT NULL,
    expires timestamptz(3) NOT NULL,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT verification_tokens_pkey PRIMARY KEY (identifier, token),
    CONSTRAINT verification_tokens_token_key UNIQUE (token)
);

CREATE TABLE stripe_prices (
    id text COLLATE "C" NOT NULL,
    stripe_product_id text COLLATE "C",
    active boolean,
    currency text,
    type text,
    unit_amount bigint,
    unit_amount_decimal numeric,
    recurring_interval text,
    recurring_interval_count integer,
    nickname text,
    lookup_key text,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_prices_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_prices_stripe_product_id_fkey FOREIGN KEY (stripe_product_id) REFERENCES stripe_products (id) ON DELETE CASCADE
);
CREATE INDEX stripe_prices_stripe_product_id_idx ON stripe_prices (stripe_product_id);

CREATE TABLE stripe_customers (
    id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    alias_of text COLLATE "C",
    linked_by text,
    email text,
    name text,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_customers_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_customers_user_id_key UNIQUE (user_id),
    CONSTRAINT stripe_customers_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL,
    CONSTRAINT stripe_customers_alias_of_fkey FOREIGN KEY (alias_of) REFERENCES stripe_customers (id) ON DELETE SET NULL
);
CREATE INDEX stripe_customers_alias_of_idx ON stripe_customers (alias_of);
CREATE INDEX stripe_customers_email_idx ON stripe_customers USING hash (lower(email));
CREATE INDEX stripe_customers_metadata_user_id_idx ON stripe_customers USING hash ((metadata ->> 'user_id'));
CREATE INDEX stripe_customers_metadata_userid_idx ON stripe_customers USING hash ((metadata ->> 'userId'));

CREATE TABLE user_subscriptions (
    id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    stripe_customer_id text COLLATE "C",
    stripe_product_id text COLLATE "C",
    stripe_price_id text COLLATE "C",
    status text,
    quantity bigint,
    current_period_start timestamptz(3),
    current_period_end timestamptz(3),
    cancel_at_period_end boolean,
    cancel_at timestamptz(3),
    canceled_at timestamptz(3),
    ended_at timestamptz(3),
    trial_start timestamptz(3),
    trial_end timestamptz(3),
    latest_invoice_id text COLLATE "C",
    items jsonb NOT NULL DEFAULT '[]'::jsonb,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT user_subscriptions_pkey PRIMARY KEY (id),
    CONSTRAINT user_subscriptions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT user_subscriptions_stripe_customer_id_fkey FOREIGN KEY (stripe_customer_id) REFERENCES stripe_customers (id) ON DELETE CASCADE,
    CONSTRAINT user_subscriptions_stripe_product_id_fkey FOREIGN KEY (stripe_product_id) REFERENCES stripe_products (id) ON DELETE SET NULL,
    CONSTRAINT user_subscriptions_stripe_price_id_fkey FOREIGN KEY (stripe_price_id) REFERENCES stripe_prices (id) ON DELETE SET NULL
);
CREATE INDEX user_subscriptions_items_idx ON user_subscriptions USING gin (items jsonb_path_ops);
CREATE INDEX user_subscriptions_metadata_user_id_idx ON user_subscriptions USING hash ((metadata ->> 'user_id'));
CREATE INDEX user_subscriptions_metadata_userid_idx ON user_subscriptions USING hash ((metadata ->> 'userId'));
CREATE INDEX user_subscriptions_stripe_customer_id_idx ON user_subscriptions (stripe_customer_id);
CREATE INDEX user_subscriptions_stripe_price_id_idx ON user_subscriptions (stripe_price_id);
CREATE INDEX user_subscriptions_stripe_product_id_idx ON user_subscriptions (stripe_product_id);
CREATE INDEX user_subscriptions_user_id_status_idx ON user_subscriptions (user_id, status);

CREATE TABLE payment_history (
    id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    stripe_customer_id text COLLATE "C",
    amount bigint,
    amount_received bigint,
    currency text,
    status text,
    description text,
    failure_code text,
    failure_message text,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT payment_history_pkey PRIMARY KEY (id),
    CONSTRAINT payment_history_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT payment_history_stripe_customer_id_fkey FOREIGN KEY (stripe_customer_id) REFERENCES stripe_customers (id) ON DELETE CASCADE
);
CREATE INDEX payment_history_stripe_customer_id_idx ON payment_history (stripe_customer_id);
CREATE INDEX payment_history_user_id_created_id_idx ON payment_history (user_id, created, id);

CREATE TABLE stripe_invoices (
    id text COLLATE "C" NOT NULL,
    stripe_customer_id text COLLATE "C",
    stripe_subscription_id text COLLATE "C",
    status text,
    billing_reason text,
    collection_method text,
    number text,
    currency text,
    amount_due bigint,
    amount_paid bigint,
    amount_remaining bigint,
    total bigint,
    starting_balance bigint,
    ending_balance bigint,
    post_payment_credit_notes_amount bigint,
    attempt_count integer,
    period_start timestamptz(3),
    period_end timestamptz(3),
    due_date timestamptz(3),
    finalized_at timestamptz(3),
    paid_at timestamptz(3),
    hosted_invoice_url text,
    lines jsonb NOT NULL DEFAULT '[]'::jsonb,
    lines_complete boolean NOT NULL DEFAULT true,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_invoices_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_invoices_stripe_customer_id_fkey FOREIGN KEY (stripe_customer_id) REFERENCES stripe_customers (id) ON DELETE SET NULL,
    CONSTRAINT stripe_invoices_stripe_subscription_id_fkey FOREIGN KEY (stripe_subscription_id) REFERENCES user_subscriptions (id) ON DELETE SET NULL
);
CREATE INDEX stripe_invoices_stripe_customer_id_idx ON stripe_invoices (stripe_customer_id);
CREATE INDEX stripe_invoices_lines_idx ON stripe_invoices USING gin (lines jsonb_path_ops);
CREATE INDEX stripe_invoices_stripe_subscription_id_status_created_idx ON stripe_invoices (stripe_subscription_id, status, created);

CREATE TABLE stripe_invoice_payments (
    id text COLLATE "C" NOT NULL,
    stripe_invoice_id text COLLATE "C",
    payment_intent_id text COLLATE "C",
    charge_id text COLLATE "C",
    status text,
    amount_paid bigint,
    currency text,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_invoice_payments_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_invoice_payments_stripe_invoice_id_fkey FOREIGN KEY (stripe_invoice_id) REFERENCES stripe_invoices (id) ON DELETE CASCADE
);
CREATE INDEX stripe_invoice_payments_charge_id_idx ON stripe_invoice_payments (charge_id);
CREATE INDEX stripe_invoice_payments_payment_intent_id_idx ON stripe_invoice_payments (payment_intent_id);
CREATE INDEX stripe_invoice_payments_stripe_invoice_id_idx ON stripe_invoice_payments (stripe_invoice_id);

CREATE TABLE stripe_charges (
    id text COLLATE "C" NOT NULL,
    payment_intent_id text COLLATE "C",
    stripe_customer_id text COLLATE "C",
    status text,
    amount bigint,
    amount_captured bigint,
    amount_refunded bigint,
    currency text,
    refunded boolean,
    disputed boolean,
    failure_code text,
    failure_message text,
    receipt_url text,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_charges_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_charges_stripe_customer_id_fkey FOREIGN KEY (stripe_customer_id) REFERENCES stripe_customers (id) ON DELETE SET NULL
);
CREATE INDEX stripe_charges_payment_intent_id_idx ON stripe_charges (payment_intent_id);
CREATE INDEX stripe_charges_stripe_customer_id_idx ON stripe_charges (stripe_customer_id);

CREATE TABLE stripe_refunds (
    id text COLLATE "C" NOT NULL,
    charge_id text COLLATE "C",
    payment_intent_id text COLLATE "C",
    amount bigint,
    currency text,
    status text,
    reason text,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_refunds_pkey PRIMARY KEY (id)
);
CREATE INDEX stripe_refunds_charge_id_idx ON stripe_refunds (charge_id);
CREATE INDEX stripe_refunds_payment_intent_id_idx ON stripe_refunds (payment_intent_id);

CREATE TABLE stripe_disputes (
    id text COLLATE "C" NOT NULL,
    charge_id text COLLATE "C",
    payment_intent_id text COLLATE "C",
    amount bigint,
    currency text,
    status text,
    reason text,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_disputes_pkey PRIMARY KEY (id)
);
CREATE INDEX stripe_disputes_charge_id_idx ON stripe_disputes (charge_id);
CREATE INDEX stripe_disputes_payment_intent_id_idx ON stripe_disputes (payment_intent_id);

CREATE TABLE stripe_checkout_sessions (
    id text COLLATE "C" NOT NULL,
    mode text,
    status text,
    payment_status text,
    client_reference_id text COLLATE "C",
    payment_link text COLLATE "C",
    stripe_customer_id text COLLATE "C",
    stripe_subscription_id text COLLATE "C",
    payment_intent_id text COLLATE "C",
    stripe_invoice_id text COLLATE "C",
    amount_total bigint,
    currency text,
    email text,
    line_items jsonb,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    created timestamptz(3),
    as_of timestamptz(3) NOT NULL DEFAULT '1970-01-01 00:00:00+00'::timestamptz,
    source text COLLATE "C" NOT NULL DEFAULT 'stub',
    deleted_at timestamptz(3),
    contested boolean NOT NULL DEFAULT false,
    livemode boolean,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_checkout_sessions_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_checkout_sessions_stripe_customer_id_fkey FOREIGN KEY (stripe_customer_id) REFERENCES stripe_customers (id) ON DELETE SET NULL
);
CREATE INDEX stripe_checkout_sessions_client_reference_id_idx ON stripe_checkout_sessions USING hash (client_reference_id);
CREATE INDEX stripe_checkout_sessions_line_items_idx ON stripe_checkout_sessions USING gin (line_items jsonb_path_ops);
CREATE INDEX stripe_checkout_sessions_metadata_user_id_idx ON stripe_checkout_sessions USING hash ((metadata ->> 'user_id'));
CREATE INDEX stripe_checkout_sessions_metadata_userid_idx ON stripe_checkout_sessions USING hash ((metadata ->> 'userId'));
CREATE INDEX stripe_checkout_sessions_payment_intent_id_idx ON stripe_checkout_sessions (payment_intent_id);
CREATE INDEX stripe_checkout_sessions_stripe_customer_id_idx ON stripe_checkout_sessions (stripe_customer_id);
CREATE INDEX stripe_checkout_sessions_stripe_invoice_id_idx ON stripe_checkout_sessions (stripe_invoice_id);
CREATE INDEX stripe_checkout_sessions_stripe_subscription_id_idx ON stripe_checkout_sessions (stripe_subscription_id);

CREATE TABLE stripe_metadata_history (
    object_id text COLLATE "C" NOT NULL,
    as_of timestamptz(3) NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_metadata_history_pkey PRIMARY KEY (object_id, as_of)
);

CREATE TABLE stripe_events (
    id text COLLATE "C" NOT NULL,
    type text NOT NULL,
    object_type text COLLATE "C",
    object_id text COLLATE "C",
    created timestamptz(3),
    api_version text,
    livemode boolean,
    account text,
    payload bytea,
    status text NOT NULL DEFAULT 'received',
    reason text,
    attempts integer NOT NULL DEFAULT 0,
    claim uuid,
    due_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    lane text NOT NULL DEFAULT 'live',
    received_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    processed_at timestamptz(3),
    error text,
    code_version text,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT stripe_events_pkey PRIMARY KEY (id),
    CONSTRAINT stripe_events_status_check CHECK (status IN ('received', 'processed', 'ignored', 'dead')),
    CONSTRAINT stripe_events_lane_check CHECK (lane IN ('live', 'bulk'))
);
CREATE INDEX stripe_events_received_at_idx ON stripe_events (received_at) WHERE status = 'dead';
CREATE INDEX stripe_events_object_id_object_type_created_idx ON stripe_events (object_id, object_type, created);
CREATE INDEX stripe_events_received_at_id_idx ON stripe_events (received_at, id);
CREATE INDEX stripe_events_lane_due_at_id_idx ON stripe_events (lane, due_at, id) WHERE status = 'received';

CREATE TABLE token_ledger (
    id bigserial NOT NULL,
    user_id text COLLATE "C",
    kind text NOT NULL,
    amount integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    grant_id bigint,
    source text COLLATE "C",
    expires_at timestamptz(3),
    email_hash text COLLATE "C",
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT token_ledger_pkey PRIMARY KEY (id),
    CONSTRAINT token_ledger_kind_check CHECK (kind IN ('grant', 'spend', 'expire', 'clawback', 'adjust')),
    CONSTRAINT token_ledger_grant_id_fkey FOREIGN KEY (grant_id) REFERENCES token_ledger (id),
    CONSTRAINT token_ledger_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL,
    CONSTRAINT token_ledger_key_key UNIQUE (key)
);
CREATE INDEX token_ledger_email_hash_idx ON token_ledger (email_hash);
CREATE INDEX token_ledger_grant_id_idx ON token_ledger (grant_id);
CREATE INDEX token_ledger_source_idx ON token_ledger (source);
CREATE INDEX token_ledger_user_id_expires_at_idx ON token_ledger (user_id, expires_at);

CREATE TABLE membership_changes (
    id bigserial NOT NULL,
    user_id text COLLATE "C",
    at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    role_from user_role,
    role_to user_role,
    status_from membership_status,
    status_to membership_status,
    product_from text COLLATE "C",
    product_to text COLLATE "C",
    reasons jsonb NOT NULL DEFAULT '[]'::jsonb,
    event_id text COLLATE "C",
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT membership_changes_pkey PRIMARY KEY (id),
    CONSTRAINT membership_changes_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL
);
CREATE INDEX membership_changes_user_id_at_idx ON membership_changes (user_id, at);

CREATE TABLE customer_links (
    id bigserial NOT NULL,
    stripe_customer_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C",
    author text NOT NULL,
    reason text,
    at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT customer_links_pkey PRIMARY KEY (id)
);
CREATE INDEX customer_links_stripe_customer_id_at_idx ON customer_links (stripe_customer_id, at);
CREATE INDEX customer_links_user_id_idx ON customer_links (user_id);

CREATE TABLE user_overrides (
    id bigserial NOT NULL,
    user_id text COLLATE "C",
    email_hash text COLLATE "C",
    kind text NOT NULL,
    role user_role,
    stripe_product_id text COLLATE "C",
    author text NOT NULL,
    reason text,
    starts_at timestamptz(3),
    expires_at timestamptz(3),
    ended_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT user_overrides_pkey PRIMARY KEY (id),
    CONSTRAINT user_overrides_kind_check CHECK (kind IN ('ban', 'admin', 'comp', 'pause')),
    CONSTRAINT user_overrides_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL,
    CONSTRAINT user_overrides_stripe_product_id_fkey FOREIGN KEY (stripe_product_id) REFERENCES stripe_products (id) ON DELETE SET NULL
);
CREATE INDEX user_overrides_email_hash_idx ON user_overrides (email_hash);
CREATE INDEX user_overrides_stripe_product_id_idx ON user_overrides (stripe_product_id);
CREATE INDEX user_overrides_user_id_idx ON user_overrides (user_id);

CREATE TABLE sync_runs (
    id bigserial NOT NULL,
    kind text NOT NULL,
    started_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz(3),
    status text NOT NULL DEFAULT 'running',
    cursor text,
    counts jsonb NOT NULL DEFAULT '{}'::jsonb,
    error text,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    CONSTRAINT sync_runs_pkey PRIMARY KEY (id)
);
CREATE INDEX sync_runs_kind_started_at_idx ON sync_runs (kind, started_at);
