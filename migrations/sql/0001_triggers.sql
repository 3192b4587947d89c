-- What the database itself keeps true, whoever writes: updated_at, balances, an append-only token ledger,
-- bans that outlive accounts, and direct writes of roles and tokens booked instead of lost.

-- Sessions of Dues say so (models/database.py). This tells writers apart; it is not a permission.
CREATE FUNCTION dues_is_writing() RETURNS boolean LANGUAGE sql STABLE
    RETURN coalesce(current_setting('dues.session', true), '') = 'on';

-- How an e-mail address is remembered when the address itself must not be.
CREATE FUNCTION dues_email_hash(email text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN encode(sha256(convert_to(lower(email), 'UTF8')), 'hex');

-- Leaves a value alone that the writer has set (Prisma's @updatedAt), and a row that did not change. Compared as
-- images (*<>): a column that the site adds may be of a type without equality, such as json.
CREATE FUNCTION dues_touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at AND NEW *<> OLD THEN
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END $$;

DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT t.table_name FROM information_schema.columns c
        JOIN information_schema.tables t USING (table_schema, table_name)
        WHERE c.column_name = 'updated_at' AND t.table_schema = current_schema() AND t.table_type = 'BASE TABLE'
            AND t.table_name <> 'token_ledger'
    LOOP
        EXECUTE format('CREATE TRIGGER dues_touch BEFORE UPDATE ON %I FOR EACH ROW EXECUTE FUNCTION dues_touch()', name);
    END LOOP;
END $$;

-- token_ledger → users.tokens. The balance is the sum of all entries, so nothing else may change either.
CREATE FUNCTION dues_add_to_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.user_id IS NOT NULL AND coalesce(current_setting('dues.booking', true), '') <> 'on' THEN
        UPDATE users SET tokens = tokens + NEW.amount WHERE id = NEW.user_id;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER dues_add_to_balance AFTER INSERT ON token_ledger
    FOR EACH ROW EXECUTE FUNCTION dues_add_to_balance();

CREATE FUNCTION dues_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The one change allowed: the user was deleted (ON DELETE SET NULL).
    IF TG_OP = 'UPDATE' AND NEW.user_id IS NULL AND OLD.user_id IS NOT NULL THEN
        NEW.user_id := OLD.user_id;
        IF NEW IS NOT DISTINCT FROM OLD AND NOT EXISTS (SELECT FROM users WHERE id = OLD.user_id) THEN
            NEW.user_id := NULL;
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'token_ledger is append-only: book a new entry instead'
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER dues_append_only BEFORE UPDATE OR DELETE ON token_ledger
    FOR EACH ROW EXECUTE FUNCTION dues_append_only();
CREATE TRIGGER dues_append_only_truncate BEFORE TRUNCATE ON token_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION dues_append_only();

-- users: a changed address must prove itself again (see accounts), and may change links; a new decision is due.
CREATE FUNCTION dues_email_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF lower(NEW.email) IS DISTINCT FROM lower(OLD.email) THEN
        NEW.email_changed_at := clock_timestamp();
    END IF;
    NEW.next_change_at := now();
    RETURN NEW;
END $$;

CREATE TRIGGER dues_email_changed BEFORE UPDATE OF email, email_verified ON users
    FOR EACH ROW WHEN (lower(NEW.email) IS DISTINCT FROM lower(OLD.email)
        OR (NEW.email_verified IS NULL) <> (OLD.email_verified IS NULL))
    EXECUTE FUNCTION dues_email_changed();

-- users.tokens and users.role, written by anybody but Dues itself (or one of its triggers), are people's decisions.
CREATE FUNCTION dues_book_tokens() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    difference integer := NEW.tokens;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        difference := NEW.tokens - OLD.tokens;
    END IF;
    -- The balance already holds the difference.
    PERFORM set_config('dues.booking', 'on', true);
    INSERT INTO token_ledger (user_id, kind, amount, key, source, expires_at)
    VALUES (NEW.id, 'adjust', difference, 'adjust:' || gen_random_uuid(), 'direct:' || current_user,
            CASE WHEN difference > 0 THEN NEW.tokens_expires_at END);
    PERFORM set_config('dues.booking', 'off', true);
    RETURN NULL;
END $$;

CREATE TRIGGER dues_book_tokens_insert AFTER INSERT ON users
    FOR EACH ROW WHEN (NEW.tokens <> 0 AND NOT dues_is_writing() AND pg_trigger_depth() = 0)
    EXECUTE FUNCTION dues_book_tokens();
CREATE TRIGGER dues_book_tokens_update AFTER UPDATE ON users
    FOR EACH ROW WHEN (NEW.tokens <> OLD.tokens AND NOT dues_is_writing() AND pg_trigger_depth() = 0)
    EXECUTE FUNCTION dues_book_tokens();

-- The written role must come out of the next decision: end the overrides that contradict it, add the one that says it.
CREATE FUNCTION dues_book_role() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wanted text := CASE NEW.role WHEN 'BANNED' THEN 'ban' WHEN 'ADMIN' THEN 'admin' WHEN 'PREMIUM' THEN 'comp' END;
    ended integer := 0;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        UPDATE user_overrides SET ended_at = clock_timestamp()
        WHERE (user_id = NEW.id OR (kind = 'ban' AND email_hash IN (dues_email_hash(OLD.email), dues_email_hash(NEW.email))))
            AND ended_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
            AND (starts_at IS NULL OR starts_at <= clock_timestamp());
        GET DIAGNOSTICS ended = ROW_COUNT;
        -- From PREMIUM to USER, and no override gave it or Stripe gives it as well: somebody wants it withheld.
        IF NEW.role = 'USER' AND OLD.role = 'PREMIUM' AND (ended = 0 OR EXISTS (
            SELECT FROM user_subscriptions WHERE user_id = NEW.id AND status IN ('active', 'trialing', 'past_due')
        )) THEN
            wanted := 'pause';
        END IF;
        -- Also if nothing was found to end: what the role will be is then for Stripe's facts to say.
        UPDATE users SET next_change_at = now() WHERE id = NEW.id;
    END IF;
    IF wanted IS NOT NULL THEN
        INSERT INTO user_overrides (user_id, kind, role, author, reason)
        VALUES (NEW.id, wanted, NEW.role, current_user, 'users.role was written directly');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER dues_book_role_insert AFTER INSERT ON users
    FOR EACH ROW WHEN (NEW.role <> 'USER' AND NOT dues_is_writing() AND pg_trigger_depth() = 0)
    EXECUTE FUNCTION dues_book_role();
CREATE TRIGGER dues_book_role_update AFTER UPDATE ON users
    FOR EACH ROW WHEN (NEW.role <> OLD.role AND NOT dues_is_writing() AND pg_trigger_depth() = 0)
    EXECUTE FUNCTION dues_book_role();

-- A ban holds for the person: it remembers the address that the user had when it was laid on.
CREATE FUNCTION dues_remember_address() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.email_hash := (SELECT dues_email_hash(email) FROM users WHERE id = NEW.user_id);
    RETURN NEW;
END $$;

CREATE TRIGGER dues_remember_address BEFORE INSERT ON user_overrides
    FOR EACH ROW WHEN (NEW.kind = 'ban' AND NEW.user_id IS NOT NULL AND NEW.email_hash IS NULL)
    EXECUTE FUNCTION dues_remember_address();

-- What people decide, and how they sign in, takes effect at the next look (within a minute) even if written by hand.
-- Users who look due already are updated too: whoever is deciding them just now can't see this row yet, holds their
-- lock and will write another time; so this has to wait for that lock and write last.
CREATE FUNCTION dues_decision_is_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE users SET next_change_at = now() WHERE id IN (OLD.user_id, NEW.user_id);
    RETURN NULL;
END $$;

CREATE TRIGGER dues_decision_is_due AFTER INSERT OR UPDATE OR DELETE ON user_overrides
    FOR EACH ROW EXECUTE FUNCTION dues_decision_is_due();
-- Not every update: signing in refreshes the account's tokens.
CREATE TRIGGER dues_decision_is_due AFTER INSERT OR UPDATE OF user_id, provider OR DELETE ON accounts
    FOR EACH ROW EXECUTE FUNCTION dues_decision_is_due();

-- A ban, and its end, meet everybody who has its address: also whoever signed up with it since.
CREATE FUNCTION dues_ban_is_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE users SET next_change_at = now() WHERE dues_email_hash(email) IN (OLD.email_hash, NEW.email_hash);
    RETURN NULL;
END $$;

CREATE TRIGGER dues_ban_is_due_insert AFTER INSERT ON user_overrides
    FOR EACH ROW WHEN (NEW.email_hash IS NOT NULL) EXECUTE FUNCTION dues_ban_is_due();
CREATE TRIGGER dues_ban_is_due_update AFTER UPDATE ON user_overrides
    FOR EACH ROW WHEN (OLD.email_hash IS NOT NULL) EXECUTE FUNCTION dues_ban_is_due();
CREATE TRIGGER dues_ban_is_due_delete AFTER DELETE ON user_overrides
    FOR EACH ROW WHEN (OLD.email_hash IS NOT NULL) EXECUTE FUNCTION dues_ban_is_due();

-- A link concerns whom it names and whose the customer was till now: an unlink names nobody.
CREATE FUNCTION dues_link_is_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE users SET next_change_at = now() WHERE id IN (
        SELECT unnest(ARRAY[OLD.user_id, NEW.user_id])
        UNION SELECT coalesce(c.user_id, p.user_id) FROM stripe_customers c LEFT JOIN stripe_customers p ON p.id = c.alias_of
        WHERE c.id IN (OLD.stripe_customer_id, NEW.stripe_customer_id)
    );
    RETURN NULL;
END $$;

CREATE TRIGGER dues_link_is_due AFTER INSERT OR UPDATE OR DELETE ON customer_links
    FOR EACH ROW EXECUTE FUNCTION dues_link_is_due();

-- What Stripe has said of a customer stays when the account goes: the person may come back, or somebody else may prove
-- to be the payer. So these rows lose their owner instead of following it (as rows that are nobody's word do), and the
-- customers are linked anew.
CREATE FUNCTION dues_disown() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    orphans jsonb;
BEGIN
    UPDATE user_subscriptions SET user_id = NULL WHERE user_id = OLD.id AND source <> 'stub';
    UPDATE payment_history SET user_id = NULL WHERE user_id = OLD.id AND source <> 'stub';
    SELECT jsonb_agg(id ORDER BY id) INTO orphans FROM stripe_customers
    WHERE user_id = OLD.id OR alias_of IN (SELECT id FROM stripe_customers WHERE user_id = OLD.id);
    IF orphans IS NOT NULL THEN
        INSERT INTO stripe_events (id, type, payload)
        VALUES ('dues_' || replace(gen_random_uuid()::text, '-', ''), 'dues.relink',
                convert_to(jsonb_build_object('customers', orphans)::text, 'UTF8'));
    END IF;
    RETURN OLD;
END $$;

CREATE TRIGGER dues_disown BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION dues_disown();

-- Whatever the writer's search_path: a front end may well have its own schema with views of these names.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['dues_add_to_balance', 'dues_append_only', 'dues_book_tokens', 'dues_book_role',
        'dues_remember_address', 'dues_decision_is_due', 'dues_ban_is_due', 'dues_link_is_due', 'dues_disown']
    LOOP
        EXECUTE format('ALTER FUNCTION %I() SET search_path = %I, pg_temp', name, current_schema());
    END LOOP;
END $$;
