-- Payloads that are old enough are emptied in place. The row stays: it is the memory that prevents doubles.
SET LOCAL ROLE ses_ledger_owner;

-- How far each pass over the tables has come, so that it goes on where it was, whichever worker does it.
CREATE TABLE ses_ledger_upkeep (
  task text PRIMARY KEY,
  after_log uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  after_event uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  finished_at timestamptz
);
COMMENT ON TABLE ses_ledger_upkeep IS 'How far each pass over the tables has come';
COMMENT ON COLUMN ses_ledger_upkeep.task IS 'empty_payloads';
COMMENT ON COLUMN ses_ledger_upkeep.after_log IS 'The pass goes on after this mail';
COMMENT ON COLUMN ses_ledger_upkeep.after_event IS 'and after this event of it';
COMMENT ON COLUMN ses_ledger_upkeep.finished_at IS 'When the last pass came to its end';
ALTER TABLE ses_ledger_upkeep ENABLE ROW LEVEL SECURITY;
INSERT INTO ses_ledger_upkeep (task) VALUES ('empty_payloads');

-- Looks at the next events, in the order of their key, of mails and with arrivals before the limit. A pass a day is enough.
-- A mail's age is in its id; ids without a time lie behind all months, and there only the arrival counts.
CREATE FUNCTION ses_ledger_empty_payloads(older_than interval, most integer, OUT emptied integer, OUT finished boolean)
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
DO $$
BEGIN
  -- It runs with somebody else's search path and the owner's rights: pin ours, temporary objects last.
  EXECUTE format('ALTER FUNCTION ses_ledger_empty_payloads(interval, integer) SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE EXECUTE ON FUNCTION ses_ledger_empty_payloads(interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ses_ledger_empty_payloads(interval, integer) TO ses_ledger_worker;
GRANT SELECT ON ses_ledger_upkeep TO ses_ledger_worker, ses_ledger_operator;
CREATE POLICY worker ON ses_ledger_upkeep FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY operator ON ses_ledger_upkeep FOR SELECT TO ses_ledger_operator USING (true);

RESET ROLE;
