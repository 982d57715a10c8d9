-- What a budget store keeps in PostgreSQL, and the one function that each operation is.
--
-- {schema} stands for the name of the schema, {version} for the version of what is in it. Every function that is called from
-- outside takes one jsonb and answers with one; arrays of numbers and of keys come as the text of an array, which is read much
-- faster than JSON.
--
-- Who waits for whom: reservations are locked before accounts, accounts in the order of their keys, and whoever inserts an
-- account holds no lock on another. So nobody ever waits in a circle. What is only tidied is skipped when locked.
--
-- Accounts beside a node (earlier parts of a rolling window) are read after the node is locked, and not locked themselves:
-- whoever writes them at that moment acts in the earlier part, counts nothing of ours, and so may as well come after us.
--
-- Every statement of a function sees what was committed before it: the isolation level is "read committed".

DO $$
BEGIN
    IF to_regnamespace('{schema}') IS NULL THEN  -- IF NOT EXISTS would ask for the right to make it where it is there already
        CREATE SCHEMA {schema};
    END IF;
END $$;

CREATE TABLE {schema}.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema integer NOT NULL,
    epoch text NOT NULL  -- another one after the tables were made anew
);
INSERT INTO {schema}.meta (schema, epoch) VALUES ({version}, gen_random_uuid()::text);

-- Counts the operations of each process, in the transaction of each: a store that counts less than it has confirmed was put back to an older
-- state, and the count says to which. In several places, so that operations that a process makes at once do not wait for each other.
CREATE TABLE {schema}.confirmed (
    client text COLLATE "C", place integer, ticks bigint NOT NULL, due bigint NOT NULL,
    PRIMARY KEY (client, place)
) WITH (fillfactor = 40);

-- Figures are numeric: amounts fit a bigint, sums of them need not. Room is left in the pages, so that updates stay in them.
CREATE TABLE {schema}.account (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text COLLATE "C" NOT NULL UNIQUE,
    budget text COLLATE "C" NOT NULL, win bigint NOT NULL, unit text NOT NULL,
    lim bigint, until bigint NOT NULL, marks bigint[] NOT NULL, label text NOT NULL, also text[] NOT NULL, kept bigint NOT NULL,
    spent numeric NOT NULL DEFAULT 0 CHECK (spent >= 0),
    reserved numeric NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    overrun numeric NOT NULL DEFAULT 0,
    forfeited numeric NOT NULL DEFAULT 0,
    fired bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 40);
CREATE INDEX account_kept ON {schema}.account (kept) WHERE kept > 0;

-- due: end of the lease. token, told: who changed it last, and what was answered if it was more than the state.
CREATE TABLE {schema}.reservation (
    id text COLLATE "C" PRIMARY KEY,
    state text NOT NULL, accounts bigint[] NOT NULL,
    asked bigint[] NOT NULL, held bigint[] NOT NULL, actual bigint[],
    due bigint NOT NULL, step bigint NOT NULL DEFAULT 0,
    token text NOT NULL, told jsonb
) WITH (fillfactor = 60);
CREATE INDEX reservation_due ON {schema}.reservation (due);

CREATE TABLE {schema}.entry (
    id text COLLATE "C" PRIMARY KEY,
    accounts bigint[] NOT NULL, amounts bigint[] NOT NULL, due bigint NOT NULL,
    token text NOT NULL, told jsonb
);
CREATE INDEX entry_due ON {schema}.entry (due);

CREATE TABLE {schema}.note (key text COLLATE "C" PRIMARY KEY, value text NOT NULL, until bigint NOT NULL);
CREATE INDEX note_until ON {schema}.note (until) WHERE until > 0;

-- --- parts ---------------------------------------------------------------------------------------------------------------
-- They run with the rights and the search_path of whoever calls them: the functions further down.

-- Nanoseconds since the epoch, by the clock of the server.
CREATE FUNCTION {schema}.clock() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000;
END $$;

CREATE FUNCTION {schema}.lease_end(ttl numeric) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN least(clock() + ttl, 9223372036854775807);
END $$;

-- The beginning of every operation: how long it waits and commits, and whether this is the store that the caller knows.
-- The answer is the number of this operation in its place; 0 where it does not write.
CREATE FUNCTION {schema}.head(request jsonb, writes boolean DEFAULT true) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    ignored text := set_config('lock_timeout', request->>'wait', true);
    known jsonb := request->'known';
    found_epoch text;
    tick bigint := 0;
BEGIN
    IF request ? 'commit' THEN
        ignored := set_config('synchronous_commit', request->>'commit', true);
    END IF;
    SELECT meta.epoch INTO found_epoch FROM meta;
    IF writes THEN
        UPDATE confirmed c SET ticks = c.ticks + 1, due = clock() + {silent}
        WHERE c.client = request->>'client' AND c.place = (request->>'place')::integer
        RETURNING c.ticks INTO tick;
        IF NOT FOUND THEN
            tick := 1;
            INSERT INTO confirmed (client, place, ticks, due)
            VALUES (request->>'client', (request->>'place')::integer, tick, clock() + {silent});
        END IF;
    END IF;
    IF found_epoch IS DISTINCT FROM request->>'epoch'
        OR writes AND tick <= coalesce((known->>(request->>'place'))::bigint, 0)
        OR (CASE WHEN writes THEN known - (request->>'place') ELSE known END) <> '{}' AND EXISTS (
            SELECT FROM jsonb_each_text(known) AS k(place, ticks)
            LEFT JOIN confirmed c ON c.client = request->>'client' AND c.place = k.place::integer
            WHERE c.ticks IS NULL OR c.ticks < k.ticks::bigint
        )
    THEN
        RAISE EXCEPTION 'not the store that it was' USING ERRCODE = 'AF001';
    END IF;
    RETURN tick;
END $$;

-- Makes accounts that are not there yet. Never called while a lock is held.
CREATE FUNCTION {schema}.make(nodes jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO account (key, budget, win, unit, lim, until, marks, label, also, kept)
    SELECT n.key, n.budget, n.win, n.unit, n.lim, n.until, n.marks, n.label, n.also, n.kept
    FROM jsonb_to_recordset(nodes) AS n(
        key text, budget text, win bigint, unit text, lim bigint, until bigint, marks bigint[], label text, also text[], kept bigint
    )
    ORDER BY n.key COLLATE "C"
    ON CONFLICT (key) DO NOTHING;
END $$;

-- Renews what accounts say of themselves. Their rows are locked.
CREATE FUNCTION {schema}.describe(nodes jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE account SET lim = n.lim, marks = n.marks, label = n.label
    FROM jsonb_to_recordset(nodes) AS n(key text, lim bigint, marks bigint[], label text)
    WHERE account.key = n.key AND (account.lim, account.marks, account.label) IS DISTINCT FROM (n.lim, n.marks, n.label);
END $$;

-- How nodes stand, with what counts beside them: spent, reserved, overrun, forfeited of each, from one statement.
CREATE FUNCTION {schema}.standing(keys text[], beside jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT coalesce(jsonb_agg(figures.row ORDER BY n.place), '[]')
        FROM unnest(keys) WITH ORDINALITY AS n(key, place)
        CROSS JOIN LATERAL (
            SELECT jsonb_build_array(
                coalesce(sum(a.spent), 0), coalesce(sum(a.reserved), 0), coalesce(sum(a.overrun), 0), coalesce(sum(a.forfeited), 0)
            ) AS row
            FROM account a
            WHERE a.key = ANY (n.key || coalesce((beside->>(n.place - 1)::integer)::text[], '{}'))
        ) AS figures
    );
END $$;

-- Whether there is room for amounts where so much is taken.
CREATE FUNCTION {schema}.fits(taken numeric[], limits bigint[], amounts bigint[], beside jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    more numeric;
BEGIN
    FOR place IN 1 .. cardinality(amounts) LOOP
        CONTINUE WHEN limits[place] IS NULL OR amounts[place] <= 0;
        more := 0;
        IF beside->>(place - 1) IS NOT NULL THEN
            SELECT coalesce(sum(a.spent + a.reserved), 0) INTO more FROM account a WHERE a.key = ANY ((beside->>(place - 1))::text[]);
        END IF;
        IF coalesce(taken[place], 0) + more + amounts[place] > limits[place] THEN
            RETURN false;
        END IF;
    END LOOP;
    RETURN true;
END $$;

-- Locks accounts by number, in the order of their keys: the key of each, and what is spent or held; NULL for one that was forgotten.
CREATE FUNCTION {schema}.lock(numbers bigint[], OUT keys text[], OUT taken numeric[]) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(a.key ORDER BY n.place), array_agg(a.taken ORDER BY n.place) INTO keys, taken
    FROM unnest(numbers) WITH ORDINALITY AS n(number, place)
    LEFT JOIN (
        SELECT number, key, spent + reserved AS taken FROM account WHERE number = ANY (numbers) ORDER BY key FOR NO KEY UPDATE
    ) AS a ON a.number = n.number;
END $$;

-- Called in assignments, as all parts that every call needs: PERFORM would plan and run a query for it.
CREATE FUNCTION {schema}.hold(numbers bigint[], amounts bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE account SET reserved = account.reserved + n.amount
    FROM unnest(numbers, amounts) AS n(number, amount)
    WHERE account.number = n.number;
    RETURN FOUND;
END $$;

-- Puts what it cost in the place of what was held. change: 1 when it is forfeited by that, -1 when it was until now.
-- Answers with marks that were reached: pairs of place, mark and spent. The rows are locked.
CREATE FUNCTION {schema}.post(numbers bigint[], held bigint[], actual bigint[], change integer, levels jsonb, beside jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    stood record;
    reached jsonb[] := '{}';
    others text[];
    total numeric;
    last bigint;
    mark bigint;
BEGIN
    FOR stood IN
        UPDATE account SET
            reserved = account.reserved - CASE WHEN change < 0 THEN 0 ELSE n.held END,
            -- A credit may have taken part of it out already: spent never falls below zero.
            spent = greatest(greatest(account.spent - CASE WHEN change < 0 THEN n.held ELSE 0 END, 0) + n.actual, 0),
            overrun = account.overrun + greatest(n.actual - n.held, 0),
            forfeited = account.forfeited + change * n.held
        FROM unnest(numbers, held, actual) WITH ORDINALITY AS n(number, held, actual, place)
        WHERE account.number = n.number
        RETURNING n.place::integer, account.number, account.spent, account.fired
    LOOP
        CONTINUE WHEN levels->>(stood.place - 1) IS NULL;
        total := stood.spent;
        last := stood.fired;
        others := beside->>(stood.place - 1);
        IF others IS NOT NULL THEN
            SELECT total + coalesce(sum(a.spent), 0), greatest(last, max(a.fired)) INTO total, last FROM account a WHERE a.key = ANY (others);
        END IF;
        FOREACH mark IN ARRAY (levels->>(stood.place - 1))::bigint[] LOOP
            IF last < mark AND mark <= total THEN
                reached[stood.place] := coalesce(reached[stood.place], '[]') || jsonb_build_array(jsonb_build_array(stood.place - 1, mark, total));
                UPDATE account SET fired = mark WHERE account.number = stood.number;
            END IF;
        END LOOP;
    END LOOP;
    IF reached = '{}' THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT jsonb_agg(one.item ORDER BY n.place, one.place)
        FROM unnest(reached) WITH ORDINALITY AS n(items, place), jsonb_array_elements(n.items) WITH ORDINALITY AS one(item, place)
    );
END $$;

-- What is said of an id that came before: the same again, or that it was made for something else.
CREATE FUNCTION {schema}.repeated(request jsonb, state text, accounts bigint[], amounts bigint[], token text, told jsonb)
RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF token = request->>'token' THEN  -- the caller himself, who has not heard the answer
        RETURN coalesce(told, '{}') || jsonb_build_object('state', state, 'applied', true);
    END IF;
    IF amounts <> (request->>'amounts')::bigint[] OR cardinality(accounts) <> cardinality((request->>'keys')::text[]) OR EXISTS (
        SELECT FROM unnest(accounts, (request->>'keys')::text[]) AS n(number, key)
        JOIN account a ON a.number = n.number WHERE a.key <> n.key  -- one that was forgotten meanwhile is taken for the same
    ) THEN
        RETURN jsonb_build_object('other', to_jsonb(amounts));
    END IF;
    RETURN jsonb_build_object('state', state, 'applied', false);
END $$;

-- Drops some of what is finished and forgotten; more than comes in, so that it does not grow.
CREATE FUNCTION {schema}.tidy(request jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    now bigint := clock();
    finished bigint := now - (request->>'finished')::bigint;
    late bigint := now - (request->>'late')::bigint;
BEGIN
    DELETE FROM reservation WHERE id IN (
        SELECT r.id FROM reservation r
        WHERE r.due <= finished AND (r.state IN ('settled', 'released') OR r.state = 'forfeited' AND r.due <= late)
        ORDER BY r.due LIMIT 256 FOR UPDATE SKIP LOCKED
    );
    DELETE FROM entry WHERE id IN (SELECT e.id FROM entry e WHERE e.due <= now ORDER BY e.due LIMIT 256 FOR UPDATE SKIP LOCKED);
    DELETE FROM confirmed c WHERE c.client IN (SELECT o.client FROM confirmed o GROUP BY o.client HAVING max(o.due) <= now LIMIT 256);
END $$;

-- --- operations ----------------------------------------------------------------------------------------------------------

CREATE FUNCTION {schema}.about() RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
BEGIN
    RETURN (
        SELECT jsonb_build_object(
            'schema', meta.schema, 'epoch', meta.epoch, 'isolation', current_setting('transaction_isolation')
        )
        FROM meta
    );
END $$;

-- How many operations of a process there are, by place.
CREATE FUNCTION {schema}.counted(client text) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_object_agg(c.place, c.ticks), '{}') FROM confirmed c WHERE c.client = counted.client);
END $$;

CREATE FUNCTION {schema}.reserve(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    keys text[] := request->>'keys';
    amounts bigint[] := request->>'amounts';
    numbers bigint[];
    taken numeric[];
    known reservation;
    done boolean;
BEGIN
    SELECT * INTO known FROM reservation r WHERE r.id = request->>'id';
    IF NOT FOUND THEN
        IF request ? 'nodes' THEN
            PERFORM make(request->'nodes');
        END IF;
        SELECT coalesce(array_agg(a.number ORDER BY array_position(keys, a.key)), '{}'), array_agg(a.taken ORDER BY array_position(keys, a.key))
        INTO numbers, taken
        FROM (SELECT key, number, spent + reserved AS taken FROM account WHERE key = ANY (keys) ORDER BY key FOR NO KEY UPDATE) AS a;
        IF cardinality(numbers) < cardinality(keys) THEN
            RETURN jsonb_build_object('missing', true);
        END IF;
        IF request ? 'nodes' THEN
            PERFORM describe(request->'nodes');
        END IF;
        IF fits(taken, (request->>'limits')::bigint[], amounts, request->'also') THEN
            INSERT INTO reservation (id, state, accounts, asked, held, due, token)
            VALUES (request->>'id', 'held', numbers, amounts, amounts, lease_end((request->>'ttl')::numeric), request->>'token')
            ON CONFLICT (id) DO NOTHING;
            IF FOUND THEN
                done := hold(numbers, amounts);
                IF request ? 'tidy' THEN
                    PERFORM tidy(request->'tidy');
                END IF;
                RETURN jsonb_build_object('tick', tick, 'state', 'held', 'applied', true);
            END IF;
        END IF;
        -- Somebody with the same id may have been quicker, and have taken the room as well.
        SELECT * INTO known FROM reservation r WHERE r.id = request->>'id';
        IF NOT FOUND THEN
            RETURN jsonb_build_object('tick', tick, 'applied', false, 'standing', standing(keys, request->'also'));
        END IF;
    END IF;
    RETURN repeated(request, known.state, known.accounts, known.asked, known.token, known.told) || jsonb_build_object('tick', tick);
END $$;

CREATE FUNCTION {schema}.mark_sent(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    known reservation;
BEGIN
    UPDATE reservation r SET state = 'sent', token = request->>'token', told = NULL WHERE r.id = request->>'id' AND r.state = 'held';
    IF FOUND THEN
        RETURN jsonb_build_object('tick', tick, 'state', 'sent', 'applied', true);
    END IF;
    SELECT * INTO known FROM reservation r WHERE r.id = request->>'id';
    RETURN jsonb_build_object('tick', tick, 'state', known.state, 'applied', coalesce(known.token = request->>'token', false));
END $$;

-- Settles; with `release` it gives everything back.
CREATE FUNCTION {schema}.settle(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    amounts bigint[] := request->>'amounts';
    after text := 'settled';
    known reservation;
    crossed jsonb;
BEGIN
    SELECT * INTO known FROM reservation r WHERE r.id = request->>'id' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('tick', tick, 'applied', false);
    END IF;
    IF known.token = request->>'token' THEN
        RETURN coalesce(known.told, '{}') || jsonb_build_object('tick', tick, 'state', known.state, 'applied', true);
    END IF;
    IF request ? 'release' THEN
        after := 'released';
        amounts := array_fill(0::bigint, ARRAY[cardinality(known.held)]);
    ELSIF cardinality(amounts) <> cardinality(known.held) THEN
        RETURN jsonb_build_object('tick', tick, 'other', to_jsonb(known.held));
    ELSIF array_position(amounts, NULL) IS NOT NULL THEN  -- what was held stands in for what nobody knows
        amounts := ARRAY(SELECT coalesce(n.actual, n.held) FROM unnest(amounts, known.held) WITH ORDINALITY AS n(actual, held, place) ORDER BY n.place);
    END IF;
    IF known.state = 'settled' AND after = 'settled' AND known.actual <> amounts THEN
        RETURN jsonb_build_object('tick', tick, 'other', to_jsonb(known.actual));
    END IF;
    IF known.state IN ('settled', 'released') THEN
        RETURN jsonb_build_object('tick', tick, 'state', known.state, 'applied', false);
    END IF;
    PERFORM FROM account a WHERE a.number = ANY (known.accounts) ORDER BY a.key FOR NO KEY UPDATE;
    crossed := post(
        known.accounts, known.held, amounts, CASE WHEN known.state = 'forfeited' THEN -1 ELSE 0 END,
        CASE WHEN after = 'settled' THEN request->'marks' END, request->'also'
    );
    UPDATE reservation r SET
        state = after, actual = CASE WHEN after = 'settled' THEN amounts END, token = request->>'token',
        told = CASE WHEN crossed IS NOT NULL THEN jsonb_build_object('crossed', crossed) END
    WHERE r.id = known.id;
    RETURN jsonb_build_object('tick', tick, 'state', after, 'applied', true, 'crossed', crossed);
END $$;

CREATE FUNCTION {schema}.extend(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    wanted bigint[] := request->>'amounts';
    growth bigint[];
    keys text[];
    taken numeric[];
    known reservation;
    done boolean;
BEGIN
    SELECT * INTO known FROM reservation r WHERE r.id = request->>'id' FOR NO KEY UPDATE;
    IF NOT FOUND OR known.token = request->>'token' OR known.state NOT IN ('held', 'sent') THEN
        RETURN jsonb_build_object('tick', tick, 'state', known.state, 'applied', coalesce(known.token = request->>'token', false));
    END IF;
    IF wanted IS NOT NULL THEN
        IF cardinality(wanted) <> cardinality(known.held) THEN
            RETURN jsonb_build_object('tick', tick, 'other', to_jsonb(known.held));
        END IF;
        growth := ARRAY(SELECT n.wanted - n.held FROM unnest(wanted, known.held) WITH ORDINALITY AS n(wanted, held, place) ORDER BY n.place);
        SELECT n.keys, n.taken INTO keys, taken FROM lock(known.accounts) AS n;
        IF NOT fits(taken, (request->>'limits')::bigint[], growth, request->'also') THEN
            RETURN jsonb_build_object(
                'tick', tick, 'state', known.state, 'applied', false,
                'standing', standing(keys, request->'also'), 'amounts', to_jsonb(growth)
            );
        END IF;
        done := hold(known.accounts, growth);
    END IF;
    UPDATE reservation r SET held = coalesce(wanted, known.held), due = lease_end((request->>'ttl')::numeric), token = request->>'token', told = NULL
    WHERE r.id = known.id;
    RETURN jsonb_build_object('tick', tick, 'state', known.state, 'applied', true);
END $$;

CREATE FUNCTION {schema}.draw(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    wanted bigint[] := request->>'held';
    keys text[];
    taken numeric[];
    known reservation;
    done boolean;
    crossed jsonb;
    found jsonb;
BEGIN
    SELECT * INTO known FROM reservation r WHERE r.id = request->>'id' FOR NO KEY UPDATE;
    IF known.token = request->>'token' THEN
        RETURN coalesce(known.told, '{}') || jsonb_build_object('tick', tick, 'state', known.state, 'applied', true);
    END IF;
    IF known.id IS NULL OR known.state NOT IN ('held', 'sent') OR (request->>'step')::bigint <= known.step THEN
        RETURN jsonb_build_object('tick', tick, 'state', known.state, 'applied', false);
    END IF;
    IF cardinality(wanted) <> cardinality(known.held) THEN
        RETURN jsonb_build_object('tick', tick, 'other', to_jsonb(known.held));
    END IF;
    PERFORM FROM account a WHERE a.number = ANY (known.accounts) ORDER BY a.key FOR NO KEY UPDATE;
    crossed := post(known.accounts, known.held, (request->>'spent')::bigint[], 0, request->'marks', request->'also');
    SELECT n.keys, n.taken INTO keys, taken FROM lock(known.accounts) AS n;
    IF NOT fits(taken, (request->>'limits')::bigint[], wanted, request->'also') THEN
        found := standing(keys, request->'also');
        wanted := request->>'least';
    END IF;
    done := hold(known.accounts, wanted);
    found := jsonb_strip_nulls(jsonb_build_object('crossed', crossed, 'standing', found));
    UPDATE reservation r SET
        held = wanted, step = (request->>'step')::bigint, due = lease_end((request->>'ttl')::numeric), token = request->>'token', told = found
    WHERE r.id = known.id;
    RETURN found || jsonb_build_object('tick', tick, 'state', known.state, 'applied', true);
END $$;

CREATE FUNCTION {schema}.adjust(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    keys text[] := request->>'keys';
    amounts bigint[] := request->>'amounts';
    numbers bigint[];
    known entry;
    crossed jsonb;
BEGIN
    SELECT * INTO known FROM entry e WHERE e.id = request->>'id';
    IF NOT FOUND THEN
        IF request ? 'nodes' THEN
            PERFORM make(request->'nodes');
        END IF;
        SELECT coalesce(array_agg(a.number ORDER BY array_position(keys, a.key)), '{}') INTO numbers
        FROM (SELECT key, number FROM account WHERE key = ANY (keys) ORDER BY key FOR NO KEY UPDATE) AS a;
        IF cardinality(numbers) < cardinality(keys) THEN
            RETURN jsonb_build_object('missing', true);
        END IF;
        IF request ? 'nodes' THEN
            PERFORM describe(request->'nodes');
        END IF;
        INSERT INTO entry (id, accounts, amounts, due, token)
        VALUES (request->>'id', numbers, amounts, lease_end((request->>'keep')::numeric), request->>'token')
        ON CONFLICT (id) DO NOTHING;
        IF FOUND THEN
            crossed := post(numbers, array_fill(0::bigint, ARRAY[cardinality(numbers)]), amounts, 0, request->'marks', request->'also');
            IF crossed IS NOT NULL THEN
                UPDATE entry e SET told = jsonb_build_object('crossed', crossed) WHERE e.id = request->>'id';
            END IF;
            RETURN jsonb_build_object('tick', tick, 'state', 'settled', 'applied', true, 'crossed', crossed);
        END IF;
        SELECT * INTO known FROM entry e WHERE e.id = request->>'id';
    END IF;
    RETURN repeated(request, 'settled', known.accounts, known.amounts, known.token, known.told) || jsonb_build_object('tick', tick);
END $$;

-- Forfeits up to `most` reservations. Those that are locked are being put right at this moment.
CREATE FUNCTION {schema}.sweep(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    late reservation[];
    one reservation;
    levels jsonb;
    beside jsonb;
    crossed jsonb := '[]';
BEGIN
    SELECT coalesce(array_agg(r), '{}') INTO late FROM (
        SELECT * FROM reservation WHERE due <= clock() AND state IN ('held', 'sent')
        ORDER BY id LIMIT (request->>'most')::integer FOR NO KEY UPDATE SKIP LOCKED
    ) AS r;
    PERFORM FROM account a WHERE a.number IN (SELECT unnest(r.accounts) FROM unnest(late) AS r) ORDER BY a.key FOR NO KEY UPDATE;
    FOREACH one IN ARRAY late LOOP
        SELECT
            jsonb_agg(CASE WHEN cardinality(a.marks) > 0 THEN a.marks::text END ORDER BY n.place),
            jsonb_agg(CASE WHEN cardinality(a.also) > 0 THEN a.also::text END ORDER BY n.place)
        INTO levels, beside
        FROM unnest(one.accounts) WITH ORDINALITY AS n(number, place) LEFT JOIN account a ON a.number = n.number;
        crossed := crossed || coalesce((
            SELECT jsonb_agg(jsonb_build_array(to_jsonb(a), reached->1, reached->2) ORDER BY (reached->>0)::integer, (reached->>1)::bigint)
            FROM jsonb_array_elements(post(one.accounts, one.held, one.held, 1, levels, beside)) AS reached
            JOIN account a ON a.number = one.accounts[(reached->>0)::integer + 1]
        ), '[]');
        UPDATE reservation r SET state = 'forfeited', token = request->>'token', told = NULL WHERE r.id = one.id;
    END LOOP;
    PERFORM tidy(request->'tidy');
    DELETE FROM account WHERE number IN (
        SELECT a.number FROM account a
        WHERE a.kept > 0 AND a.kept < (request->>'now')::bigint - (request->'tidy'->>'late')::bigint AND a.reserved = 0
        ORDER BY a.key LIMIT 256 FOR UPDATE SKIP LOCKED
    );
    RETURN jsonb_build_object(
        'tick', tick, 'forfeited', (SELECT coalesce(jsonb_agg(r.id ORDER BY r.id COLLATE "C"), '[]') FROM unnest(late) AS r), 'crossed', crossed
    );
END $$;

CREATE FUNCTION {schema}.read(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request, false);
BEGIN
    RETURN jsonb_build_object('tick', tick, 'standing', standing((request->>'keys')::text[], request->'also'));
END $$;

CREATE FUNCTION {schema}.accounts(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request, false);
BEGIN
    RETURN jsonb_build_object('tick', tick, 'accounts', (
        SELECT coalesce(jsonb_agg(jsonb_build_array(to_jsonb(a), figures.row) ORDER BY a.key), '[]')
        FROM account a
        CROSS JOIN LATERAL (
            SELECT jsonb_build_array(sum(b.spent), sum(b.reserved), sum(b.overrun), sum(b.forfeited)) AS row
            FROM account b WHERE b.key = ANY (a.key || a.also)
        ) AS figures
        WHERE request->>'budget' IS NULL OR a.budget = request->>'budget'
    ));
END $$;

CREATE FUNCTION {schema}.forget(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
BEGIN
    DELETE FROM account USING (
        SELECT number FROM account WHERE key = ANY ((request->>'keys')::text[]) ORDER BY key FOR UPDATE
    ) AS gone WHERE account.number = gone.number;
    RETURN jsonb_build_object('tick', tick);
END $$;

CREATE FUNCTION {schema}.put(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    now bigint := request->>'now';
    done boolean;
BEGIN
    INSERT INTO note (key, value, until) VALUES (request->>'key', request->>'value', (request->>'until')::bigint)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, until = excluded.until
    WHERE NOT request ? 'new' OR note.until > 0 AND note.until <= now;
    done := FOUND;
    DELETE FROM note WHERE key IN (
        SELECT n.key FROM note n WHERE n.until > 0 AND n.until <= now AND n.key <> request->>'key' LIMIT 256 FOR UPDATE SKIP LOCKED
    );
    RETURN jsonb_build_object('tick', tick, 'done', done);
END $$;

CREATE FUNCTION {schema}.take(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request);
    taken note;
BEGIN
    DELETE FROM note n WHERE n.key = request->>'key' RETURNING * INTO taken;
    IF taken.until > 0 AND taken.until <= (request->>'now')::bigint THEN
        taken.value := NULL;
    END IF;
    RETURN jsonb_build_object('tick', tick, 'value', taken.value);
END $$;

CREATE FUNCTION {schema}.notes(request jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
DECLARE
    tick bigint := head(request, false);
BEGIN
    RETURN jsonb_build_object('tick', tick, 'notes', (
        SELECT coalesce(jsonb_agg(jsonb_build_array(n.key, n.value) ORDER BY n.key), '[]') FROM note n
        WHERE starts_with(n.key, request->>'prefix') AND (n.until = 0 OR n.until > (request->>'now')::bigint)
    ));
END $$;

-- Who may do what: nothing, but for the owner and those who are granted it.
REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC;
