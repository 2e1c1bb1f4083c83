-- The rules that the tables and the worker share, as pure functions.
SET LOCAL ROLE ses_ledger_owner;

-- From harmless to final: facts keep the greatest, so the order matters.
CREATE TYPE ses_ledger_bounce_class AS ENUM ('transient', 'undetermined', 'permanent');

-- A UUID version 7: 48 bits of Unix milliseconds, then random bits. PostgreSQL has its own from version 18 on.
CREATE FUNCTION ses_ledger_uuid_v7() RETURNS uuid
  LANGUAGE sql VOLATILE PARALLEL SAFE
  RETURN (
    SELECT (substr(ms, 1, 8) || '-' || substr(ms, 9, 4) || '-7' || substr(random, 16))::uuid
    FROM (SELECT lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') AS ms,
                 gen_random_uuid()::text AS random) AS parts
  );

-- The smallest UUID of that moment: every UUID version 7 made at it or later is greater.
CREATE FUNCTION ses_ledger_uuid_floor(at timestamptz) RETURNS uuid
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN (
    SELECT (substr(ms, 1, 8) || '-' || substr(ms, 9, 4) || '-0000-0000-000000000000')::uuid
    FROM (SELECT lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS ms) AS parts
  );

-- The moment that the first 48 bits tell. Any UUID has some; only those of version 7 mean it.
CREATE FUNCTION ses_ledger_uuid_time(id uuid) RETURNS timestamptz
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN to_timestamp(('x0000' || translate(left(id::text, 13), '-', ''))::bit(64)::bigint / 1000.0);

-- The id of SES as it is looked up: trimmed, without control characters, <> and @domain; the case stays.
-- NULL if nothing is left. The worker does the same to the ids in the events.
CREATE FUNCTION ses_ledger_message_id(raw text) RETURNS text
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN nullif(btrim(split_part(rtrim(ltrim(btrim(regexp_replace(raw, '[[:cntrl:]]', '', 'g')), '<'), '>'), '@', 1)), '');

-- The fact that an event states about its mail, if any.
--   A complaint with a subtype (…SuppressionList) says that SES did not send: a bounce, not a new complaint.
--   `not-spam` is the opposite of a complaint. A subscription is about a list, not about the mail.
CREATE FUNCTION ses_ledger_fact(event_type text, complaint_type text, complaint_subtype text) RETURNS text
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE event_type
    WHEN 'send' THEN 'sent'
    WHEN 'delivery' THEN 'delivered'
    WHEN 'delivery_delay' THEN 'delayed'
    WHEN 'bounce' THEN 'bounced'
    WHEN 'complaint' THEN
      CASE WHEN complaint_subtype IS NOT NULL THEN 'bounced'
           WHEN lower(complaint_type) = 'not-spam' THEN NULL
           ELSE 'complained' END
    WHEN 'reject' THEN 'rejected'
    WHEN 'rendering_failure' THEN 'failed'
    WHEN 'open' THEN 'opened'
    WHEN 'click' THEN 'clicked'
  END;

-- How final a bounce is; NULL for what is no bounce. A type that SES adds later is undetermined.
CREATE FUNCTION ses_ledger_bounce_class_of(event_type text, bounce_type text, complaint_subtype text)
  RETURNS ses_ledger_bounce_class
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE
    WHEN event_type = 'complaint' AND complaint_subtype IS NOT NULL THEN 'permanent'::ses_ledger_bounce_class
    WHEN event_type = 'bounce' THEN
      CASE lower(bounce_type)
        WHEN 'permanent' THEN 'permanent'::ses_ledger_bounce_class
        WHEN 'transient' THEN 'transient'::ses_ledger_bounce_class
        ELSE 'undetermined'::ses_ledger_bounce_class END
  END;

RESET ROLE;
