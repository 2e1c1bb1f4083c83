-- Nobody can say any more when retention ran on payloads and bodies, and months are counted behind gaps again.
SET LOCAL ROLE ses_ledger_owner;
DROP FUNCTION ses_ledger_empty(text, interval, integer);
ALTER TABLE ses_ledger_upkeep DROP COLUMN ran_at, DROP COLUMN emptying, DROP COLUMN emptied;
ALTER TABLE ses_ledger_workers DROP COLUMN retention;
CREATE OR REPLACE VIEW pipeline_health WITH (security_invoker = true) AS
  SELECT mails.*, orphans.*, quarantine.*, partitions.*
  FROM (SELECT count(*) AS mails_last_hour,
               count(*) FILTER (WHERE status = 'queued') AS mails_last_hour_without_event,
               count(*) FILTER (WHERE status IN ('bounced', 'rejected', 'failed')) AS mails_last_hour_failed
        FROM email_logs WHERE uuid >= ses_ledger_uuid_floor(now() - interval '1 hour')) AS mails,
       (SELECT count(*) AS orphans, min(stored_at) AS oldest_orphan_at, max(stored_at) AS newest_orphan_at
        FROM orphaned_events) AS orphans,
       (SELECT count(*) AS quarantined,
               count(*) FILTER (WHERE first_seen_at > now() - interval '1 hour') AS quarantined_last_hour,
               max(last_seen_at) AS last_quarantined_at
        FROM quarantined_messages) AS quarantine,
       (SELECT count(*) AS months_ahead
        FROM generate_series(1, 24) AS n
        WHERE to_regclass('email_events_' || to_char((now() + make_interval(months => n)) AT TIME ZONE 'UTC', '"y"YYYY"m"MM')) IS NOT NULL
       ) AS partitions;
DROP FUNCTION ses_ledger_months_ahead();
CREATE OR REPLACE FUNCTION ses_ledger_erased_name(address text) RETURNS text
  LANGUAGE sql STABLE STRICT SECURITY DEFINER
  AS $$
    SELECT CASE WHEN address = '' OR address LIKE 'erased:%' THEN address
           ELSE 'erased:' || encode(substring(sha256(k.outer_key || sha256(k.inner_key || convert_to(address, 'UTF8'))) FROM 1 FOR 16), 'hex') END
    FROM ses_ledger_erasure_key AS k WHERE k.singleton
  $$;
DO $$
BEGIN
  EXECUTE format('ALTER FUNCTION ses_ledger_erased_name(text) SET search_path = %I, pg_temp', current_schema());
END
$$;
RESET ROLE;
