-- Looking after years of data: who counts months counts the same, and what retention did is written down, so that somebody
-- notices when it does not.
SET LOCAL ROLE ses_ledger_owner;

-- Months after this one that have their partition, up to the first that has none: a month behind a gap helps nobody who
-- comes to the gap. Where this month itself has none, there are none ahead. One that is being detached does not count.
CREATE FUNCTION ses_ledger_months_ahead() RETURNS bigint
  LANGUAGE sql STABLE
  AS $$
    SELECT greatest(coalesce(min(n) - 1, 24), 0)::bigint
    FROM generate_series(0, 24) AS n
    WHERE NOT EXISTS (
      SELECT FROM pg_inherits
      WHERE inhparent = to_regclass('email_events') AND NOT inhdetachpending
        AND inhrelid = to_regclass('email_events_' || to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => n),
                                                              '"y"YYYY"m"MM')))
  $$;
COMMENT ON FUNCTION ses_ledger_months_ahead() IS 'Coming months that have their partition, without a gap; 24 at most';

CREATE OR REPLACE VIEW pipeline_health WITH (security_invoker = true) AS
  SELECT mails.*, orphans.*, quarantine.*, ses_ledger_months_ahead() AS months_ahead
  FROM (SELECT count(*) AS mails_last_hour,
               count(*) FILTER (WHERE status = 'queued') AS mails_last_hour_without_event,
               count(*) FILTER (WHERE status IN ('bounced', 'rejected', 'failed')) AS mails_last_hour_failed
        FROM email_logs WHERE uuid >= ses_ledger_uuid_floor(now() - interval '1 hour')) AS mails,
       (SELECT count(*) AS orphans, min(stored_at) AS oldest_orphan_at, max(stored_at) AS newest_orphan_at
        FROM orphaned_events) AS orphans,
       (SELECT count(*) AS quarantined,
               count(*) FILTER (WHERE first_seen_at > now() - interval '1 hour') AS quarantined_last_hour,
               max(last_seen_at) AS last_quarantined_at
        FROM quarantined_messages) AS quarantine;

-- All of a worker's retention, not of payloads alone. Rows of workers from before say nothing of the rest.
ALTER TABLE ses_ledger_workers ADD COLUMN retention jsonb;
COMMENT ON COLUMN ses_ledger_workers.retention IS 'Its RETENTION_ settings in seconds, by class; what is not named is kept. NULL: it is older than this column';

-- What the passes over payloads and bodies did.
ALTER TABLE ses_ledger_upkeep
  ADD COLUMN ran_at timestamptz,
  ADD COLUMN emptying bigint NOT NULL DEFAULT 0,
  ADD COLUMN emptied bigint;
COMMENT ON COLUMN ses_ledger_upkeep.ran_at IS 'When a slice was last looked at';
COMMENT ON COLUMN ses_ledger_upkeep.emptying IS 'What the pass under way has emptied';
COMMENT ON COLUMN ses_ledger_upkeep.emptied IS 'What the last pass that came to its end had emptied';

-- One slice of a pass over payloads or bodies, and a note of it. The row is locked here already: so what is compared is what
-- this slice did.
CREATE FUNCTION ses_ledger_empty(content text, older_than interval, most integer, OUT emptied integer, OUT finished boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC'
  AS $$
DECLARE
  name text := 'empty_' || content;
  before ses_ledger_upkeep;
  after ses_ledger_upkeep;
BEGIN
  emptied := 0;
  finished := true;
  SELECT * INTO before FROM ses_ledger_upkeep WHERE task = name FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;  -- another worker is at it
  END IF;
  CASE content
    WHEN 'payloads' THEN SELECT * INTO emptied, finished FROM ses_ledger_empty_payloads(older_than, most);
    WHEN 'bodies' THEN SELECT * INTO emptied, finished FROM ses_ledger_empty_bodies(older_than, most);
  END CASE;
  SELECT * INTO after FROM ses_ledger_upkeep WHERE task = name;
  IF (after.after_log, after.after_event, after.finished_at) IS NOT DISTINCT FROM (before.after_log, before.after_event, before.finished_at) THEN
    RETURN;  -- it was done today
  END IF;
  UPDATE ses_ledger_upkeep AS u SET
    ran_at = now(),
    emptying = CASE WHEN finished THEN 0 ELSE before.emptying + ses_ledger_empty.emptied END,
    emptied = CASE WHEN finished THEN before.emptying + ses_ledger_empty.emptied ELSE u.emptied END
  WHERE u.task = name;
END
$$;

-- Where the secrets were deleted, an event that names nobody names nobody still: it was NULL, and could not be stored.
CREATE OR REPLACE FUNCTION ses_ledger_erased_name(address text) RETURNS text
  LANGUAGE sql STABLE STRICT SECURITY DEFINER
  AS $$
    SELECT CASE WHEN address = '' OR address LIKE 'erased:%' THEN address
           ELSE (SELECT 'erased:' || encode(substring(sha256(k.outer_key || sha256(k.inner_key || convert_to(address, 'UTF8'))) FROM 1 FOR 16), 'hex')
                 FROM ses_ledger_erasure_key AS k WHERE k.singleton) END
  $$;

DO $$
DECLARE
  name regprocedure;
BEGIN
  FOREACH name IN ARRAY ARRAY['ses_ledger_months_ahead()', 'ses_ledger_empty(text, interval, integer)',
                              'ses_ledger_erased_name(text)']::regprocedure[] LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
  END LOOP;
END
$$;
REVOKE EXECUTE ON FUNCTION ses_ledger_empty(text, interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ses_ledger_empty(text, interval, integer) TO ses_ledger_worker;

RESET ROLE;
