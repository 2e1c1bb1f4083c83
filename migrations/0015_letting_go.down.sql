-- What was let go stays gone. A binary that stores without the horizon does not know about it any more.
SET LOCAL ROLE ses_ledger_owner;
DROP FUNCTION ses_ledger_empty_bodies(interval, integer);
ALTER FUNCTION ses_ledger_uuid_v7() PARALLEL SAFE;
CREATE OR REPLACE FUNCTION ses_ledger_empty_payloads(older_than interval, most integer, OUT emptied integer, OUT finished boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC'
  AS $$
DECLARE
  cutoff timestamptz := now() - older_than;
  start CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  behind_all_months CONSTANT uuid := '024bce5c-f000-0000-0000-000000000000';
  at ses_ledger_upkeep;
  last ses_ledger_upkeep;
  in_months boolean;
  seen integer;
BEGIN
  -- It runs with the owner's rights for whoever is a worker: what is fresh is out of its reach.
  IF older_than IS NULL OR older_than < interval '1 day' OR most IS NULL OR most < 1 THEN
    RAISE invalid_parameter_value USING MESSAGE = 'payloads have to be older than a day to be emptied, one at least at a time';
  END IF;
  emptied := 0;
  finished := true;
  SELECT * INTO at FROM ses_ledger_upkeep WHERE task = 'empty_payloads' FOR UPDATE SKIP LOCKED;
  IF NOT FOUND OR (at.after_log = start AND at.finished_at > now() - interval '1 day') THEN
    RETURN;  -- another worker is at it, or it was done today
  END IF;
  in_months := at.after_log < behind_all_months;
  WITH slice AS MATERIALIZED (
    SELECT email_log_uuid, uuid, payload IS NOT NULL AND received_at < cutoff AS due
    FROM email_events
    WHERE (email_log_uuid, uuid) > (at.after_log, at.after_event)
      AND email_log_uuid < CASE WHEN in_months THEN ses_ledger_uuid_floor(cutoff) ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END
    ORDER BY email_log_uuid, uuid LIMIT most
  ), gone AS (
    UPDATE email_events AS e SET payload = NULL FROM slice
    WHERE slice.due AND e.email_log_uuid = slice.email_log_uuid AND e.uuid = slice.uuid
    RETURNING 1
  )
  SELECT (SELECT count(*) FROM slice), (SELECT count(*) FROM gone),
         (SELECT email_log_uuid FROM slice ORDER BY email_log_uuid DESC, uuid DESC LIMIT 1),
         (SELECT uuid FROM slice ORDER BY email_log_uuid DESC, uuid DESC LIMIT 1)
  INTO seen, emptied, last.after_log, last.after_event;
  finished := seen < most AND NOT in_months;
  UPDATE ses_ledger_upkeep SET
    after_log = CASE WHEN finished THEN start WHEN seen < most THEN behind_all_months ELSE last.after_log END,
    after_event = CASE WHEN seen < most THEN start ELSE last.after_event END,
    finished_at = CASE WHEN finished THEN now() ELSE finished_at END
  WHERE task = 'empty_payloads';
END
$$;
CREATE OR REPLACE FUNCTION email_events_ensure_month(month timestamptz) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC' SET lock_timeout = '1s'
  AS $$
DECLARE
  first timestamptz := date_trunc('month', month, 'UTC');
  next timestamptz := date_trunc('month', month, 'UTC') + interval '1 month';
  name text := 'email_events_' || to_char(month AT TIME ZONE 'UTC', '"y"YYYY"m"MM');
BEGIN
  IF first < timestamptz '2015-01-01 00:00:00+00' OR first >= timestamptz '2050-01-01 00:00:00+00' THEN
    RETURN false;
  END IF;
  IF to_regclass(name) IS NOT NULL THEN
    RETURN false;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext('ses_ledger partitions'));
  IF to_regclass(name) IS NOT NULL THEN
    RETURN false;  -- somebody made it while we waited
  END IF;
  -- Made apart and attached: creating it in place would lock readers out of the whole table.
  EXECUTE format('CREATE TABLE %I (LIKE email_events INCLUDING ALL)', name);
  EXECUTE format('ALTER TABLE email_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                 name, ses_ledger_uuid_floor(first), ses_ledger_uuid_floor(next));
  RETURN true;
END
$$;
CREATE OR REPLACE FUNCTION email_events_ensure_for(message_ids text[], log_uuids uuid[]) RETURNS integer
  LANGUAGE sql VOLATILE
  AS $$
    SELECT count(*) FILTER (WHERE email_events_ensure_month(month))::integer
    FROM (SELECT DISTINCT date_trunc('month', ses_ledger_uuid_time(uuid), 'UTC') AS month
          FROM email_logs
          WHERE aws_message_id = ANY (message_ids) OR uuid = ANY (log_uuids)) AS months
  $$;
DO $$
DECLARE
  name regprocedure;
BEGIN
  FOREACH name IN ARRAY ARRAY['email_events_ensure_month(timestamptz)', 'email_events_ensure_for(text[], uuid[])',
                              'ses_ledger_empty_payloads(interval, integer)']::regprocedure[] LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
  END LOOP;
END
$$;
DROP FUNCTION ses_ledger_put_down(ses_ledger_upkeep, uuid, uuid, boolean, timestamptz);
DROP FUNCTION ses_ledger_take_up(text);
DELETE FROM ses_ledger_upkeep WHERE task = 'empty_bodies';
COMMENT ON COLUMN ses_ledger_upkeep.task IS 'empty_payloads';
ALTER TABLE ses_ledger_upkeep DROP COLUMN next_from, DROP COLUMN is_whole, DROP COLUMN whole_at;
DROP FUNCTION ses_ledger_is_let_go(uuid, timestamptz);
DROP FUNCTION ses_ledger_is_v7(uuid);
DROP TABLE ses_ledger_retention_runs;
DROP TABLE ses_ledger_months_let_go;
DROP TABLE ses_ledger_horizon;
DROP FUNCTION ses_ledger_horizon_stands();
RESET ROLE;
