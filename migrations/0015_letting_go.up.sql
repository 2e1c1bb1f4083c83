-- Years of data: what is too old is let go, and stays known as such.
SET LOCAL ROLE ses_ledger_owner;

-- A volatile function in SQL cannot run inside a parallel plan, whatever it is declared as: reading a large table with it failed.
ALTER FUNCTION ses_ledger_uuid_v7() PARALLEL UNSAFE;

-- The memory that outlives the rows: two moments that only ever move forward, read by every statement that stores. An event
-- of a mail from before them belongs to what was let go: its row is not stored again, and it does not wait as an orphan.
-- They are moved, and committed, before anything is removed; so whoever stores meanwhile knows already.
-- A moment rather than a list of months: one comparison per event, also after twenty years.
CREATE TABLE ses_ledger_horizon (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  -- Before every time that an id can tell: nothing was let go.
  events_from timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
  logs_from timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
  events_from_id uuid NOT NULL GENERATED ALWAYS AS (ses_ledger_uuid_floor(events_from)) STORED,
  logs_from_id uuid NOT NULL GENERATED ALWAYS AS (ses_ledger_uuid_floor(logs_from)) STORED,
  -- A mail that goes takes its events along.
  CHECK (logs_from <= events_from)
);
INSERT INTO ses_ledger_horizon DEFAULT VALUES;
COMMENT ON TABLE ses_ledger_horizon IS 'One row: from when on events and mails are kept. Only ever moves forward';
COMMENT ON COLUMN ses_ledger_horizon.singleton IS 'There is one row';
COMMENT ON COLUMN ses_ledger_horizon.events_from IS 'Events of mails from before are let go';
COMMENT ON COLUMN ses_ledger_horizon.logs_from IS 'Mails from before are let go';
COMMENT ON COLUMN ses_ledger_horizon.events_from_id IS 'The smallest UUID version 7 of events_from';
COMMENT ON COLUMN ses_ledger_horizon.logs_from_id IS 'The smallest UUID version 7 of logs_from';

CREATE FUNCTION ses_ledger_horizon_stands() RETURNS trigger
  LANGUAGE plpgsql
  AS $$
BEGIN
  IF TG_OP = 'DELETE' OR NEW.events_from < OLD.events_from OR NEW.logs_from < OLD.logs_from THEN
    RAISE invalid_parameter_value USING MESSAGE = 'what was let go stays let go: the horizon does not move back';
  END IF;
  RETURN NEW;
END
$$;
CREATE TRIGGER ses_ledger_horizon_stands BEFORE UPDATE OR DELETE ON ses_ledger_horizon
  FOR EACH ROW EXECUTE FUNCTION ses_ledger_horizon_stands();

-- Which months went, when, how much they held, and where they were exported to.
CREATE TABLE ses_ledger_months_let_go (
  month date PRIMARY KEY,
  began_at timestamptz NOT NULL DEFAULT now(),
  gone_at timestamptz,
  events bigint,
  bytes bigint,
  kept bigint,
  export_file text,
  export_sha256 text
);
COMMENT ON TABLE ses_ledger_months_let_go IS 'Months of events that were dropped, or are about to be';
COMMENT ON COLUMN ses_ledger_months_let_go.month IS 'First day of the month, in UTC';
COMMENT ON COLUMN ses_ledger_months_let_go.began_at IS 'When the month was taken up';
COMMENT ON COLUMN ses_ledger_months_let_go.gone_at IS 'When its partition was dropped; NULL while that is under way';
COMMENT ON COLUMN ses_ledger_months_let_go.events IS 'Events that it held';
COMMENT ON COLUMN ses_ledger_months_let_go.bytes IS 'Bytes that it took, with its indexes';
COMMENT ON COLUMN ses_ledger_months_let_go.kept IS 'Events of younger mails whose id only looks like that month; they were put back';
COMMENT ON COLUMN ses_ledger_months_let_go.export_file IS 'File that holds the events; NULL if they were not exported';
COMMENT ON COLUMN ses_ledger_months_let_go.export_sha256 IS 'SHA-256 of that file, as in its manifest';

-- When retention ran, so that somebody notices when it does not.
CREATE TABLE ses_ledger_retention_runs (
  uuid uuid PRIMARY KEY DEFAULT ses_ledger_uuid_v7(),
  began_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz,
  let_go jsonb,
  run_by text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE ses_ledger_retention_runs IS 'One row per `ses-ledger retention run`';
COMMENT ON COLUMN ses_ledger_retention_runs.uuid IS 'Our id of the run, UUID version 7';
COMMENT ON COLUMN ses_ledger_retention_runs.began_at IS 'When it began';
COMMENT ON COLUMN ses_ledger_retention_runs.ended_at IS 'When it came to its end without a fault; NULL if it did not, or has not yet';
COMMENT ON COLUMN ses_ledger_retention_runs.let_go IS 'What it let go, by class';
COMMENT ON COLUMN ses_ledger_retention_runs.run_by IS 'The login';

-- Whether the id tells when it was made.
CREATE FUNCTION ses_ledger_is_v7(id uuid) RETURNS boolean
  LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
  RETURN substr(id::text, 15, 1) = '7';

-- Whether the events of this mail are let go. An id that tells no time lies in any month; there the log's own time counts.
CREATE FUNCTION ses_ledger_is_let_go(id uuid, created_at timestamptz) RETURNS boolean
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN (SELECT CASE WHEN ses_ledger_is_v7(id) THEN id < h.events_from_id ELSE created_at < h.events_from END
          FROM ses_ledger_horizon AS h WHERE h.singleton);

-- A month that was let go comes back only for mails whose id looks like that month and is not of version 7.
CREATE OR REPLACE FUNCTION email_events_ensure_for(message_ids text[], log_uuids uuid[]) RETURNS integer
  LANGUAGE sql VOLATILE
  AS $$
    SELECT count(*) FILTER (WHERE email_events_ensure_month(month))::integer
    FROM (SELECT DISTINCT date_trunc('month', ses_ledger_uuid_time(uuid), 'UTC') AS month
          FROM email_logs
          WHERE (aws_message_id = ANY (message_ids) OR uuid = ANY (log_uuids))
            AND NOT coalesce(ses_ledger_is_let_go(uuid, created_at), false)) AS months
  $$;

-- As before; and a month that a killed retention left half detached is detached first: else the new one would overlap it.
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
  IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(name || '_let_go') AND inhdetachpending) THEN
    EXECUTE format('ALTER TABLE email_events DETACH PARTITION %I FINALIZE', name || '_let_go');
  END IF;
  -- Made apart and attached: creating it in place would lock readers out of the whole table.
  EXECUTE format('CREATE TABLE %I (LIKE email_events INCLUDING ALL)', name);
  EXECUTE format('ALTER TABLE email_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                 name, ses_ledger_uuid_floor(first), ses_ledger_uuid_floor(next));
  RETURN true;
END
$$;

-- What a pass has seen to the end, it need not read again every day: only what is younger, and for two months more, in
-- which late events still come. Once in thirty days it looks at everything, for the few that come later than that.
ALTER TABLE ses_ledger_upkeep
  ADD COLUMN next_from uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  ADD COLUMN is_whole boolean NOT NULL DEFAULT true,
  ADD COLUMN whole_at timestamptz;
COMMENT ON COLUMN ses_ledger_upkeep.task IS 'empty_payloads, empty_bodies';
COMMENT ON COLUMN ses_ledger_upkeep.next_from IS 'The next pass begins at this mail, unless it looks at everything';
COMMENT ON COLUMN ses_ledger_upkeep.is_whole IS 'This pass looks at everything';
COMMENT ON COLUMN ses_ledger_upkeep.whole_at IS 'When the last pass that looked at everything came to its end';
INSERT INTO ses_ledger_upkeep (task) VALUES ('empty_bodies');

-- Takes up a pass where it was, or begins the next one if that is due. NULL: nothing to do now, or another worker is at it.
-- Keeps the row locked until the transaction ends.
CREATE FUNCTION ses_ledger_take_up(wanted text) RETURNS ses_ledger_upkeep
  LANGUAGE plpgsql
  AS $$
DECLARE
  start CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  at ses_ledger_upkeep;
BEGIN
  SELECT * INTO at FROM ses_ledger_upkeep WHERE task = wanted FOR UPDATE SKIP LOCKED;
  IF NOT FOUND OR (at.after_log = start AND at.finished_at > now() - interval '1 day') THEN
    RETURN NULL;
  END IF;
  IF at.after_log = start THEN
    at.is_whole := at.whole_at IS NULL OR at.whole_at < now() - interval '30 days';
    at.after_log := CASE WHEN at.is_whole THEN start ELSE at.next_from END;
  END IF;
  RETURN at;
END
$$;

-- Notes how far a pass has come: after this mail and event, or at its end.
CREATE FUNCTION ses_ledger_put_down(at ses_ledger_upkeep, log uuid, event uuid, finished boolean, seen_before timestamptz) RETURNS void
  LANGUAGE sql VOLATILE
  AS $$
    UPDATE ses_ledger_upkeep SET
      after_log = CASE WHEN finished THEN '00000000-0000-0000-0000-000000000000' ELSE log END,
      after_event = CASE WHEN finished THEN '00000000-0000-0000-0000-000000000000' ELSE event END,
      is_whole = at.is_whole,
      finished_at = CASE WHEN finished THEN now() ELSE finished_at END,
      whole_at = CASE WHEN finished AND at.is_whole THEN now() ELSE whole_at END,
      next_from = CASE WHEN finished THEN ses_ledger_uuid_floor(seen_before - interval '60 days') ELSE next_from END
    WHERE task = at.task
  $$;

CREATE OR REPLACE FUNCTION ses_ledger_empty_payloads(older_than interval, most integer, OUT emptied integer, OUT finished boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC'
  AS $$
DECLARE
  cutoff timestamptz := now() - older_than;
  behind_all_months CONSTANT uuid := '024bce5c-f000-0000-0000-000000000000';
  at ses_ledger_upkeep;
  in_months boolean;
  seen integer;
  log uuid;
  event uuid;
BEGIN
  -- It runs with the owner's rights for whoever is a worker: what is fresh is out of its reach.
  IF older_than IS NULL OR older_than < interval '1 day' OR most IS NULL OR most < 1 THEN
    RAISE invalid_parameter_value USING MESSAGE = 'payloads have to be older than a day to be emptied, one at least at a time';
  END IF;
  emptied := 0;
  finished := true;
  at := ses_ledger_take_up('empty_payloads');
  IF at.task IS NULL THEN
    RETURN;
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
  INTO seen, emptied, log, event;
  finished := seen < most AND NOT in_months;
  IF seen < most THEN
    log := behind_all_months;
    event := '00000000-0000-0000-0000-000000000000';
  END IF;
  PERFORM ses_ledger_put_down(at, log, event, finished, cutoff);
END
$$;

-- The same for what the sender keeps of the mail itself: its body and its headers, which name everybody it went to.
CREATE FUNCTION ses_ledger_empty_bodies(older_than interval, most integer, OUT emptied integer, OUT finished boolean)
  LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC'
  AS $$
DECLARE
  cutoff timestamptz := now() - older_than;
  nil CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  behind_all_months CONSTANT uuid := '024bce5c-f000-0000-0000-000000000000';
  at ses_ledger_upkeep;
  in_months boolean;
  seen integer;
  log uuid;
BEGIN
  IF older_than IS NULL OR older_than < interval '1 day' OR most IS NULL OR most < 1 THEN
    RAISE invalid_parameter_value USING MESSAGE = 'bodies have to be older than a day to be emptied, one at least at a time';
  END IF;
  emptied := 0;
  finished := true;
  at := ses_ledger_take_up('empty_bodies');
  IF at.task IS NULL THEN
    RETURN;
  END IF;
  in_months := at.after_log < behind_all_months;
  WITH slice AS MATERIALIZED (
    SELECT uuid, (body_full IS NOT NULL OR headers IS NOT NULL) AND created_at < cutoff AS due
    FROM email_logs
    WHERE uuid > at.after_log
      AND uuid < CASE WHEN in_months THEN ses_ledger_uuid_floor(cutoff) ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff' END
    ORDER BY uuid LIMIT most
  ), gone AS (
    UPDATE email_logs AS l SET body_full = NULL, headers = NULL FROM slice
    WHERE slice.due AND l.uuid = slice.uuid
    RETURNING 1
  )
  SELECT (SELECT count(*) FROM slice), (SELECT count(*) FROM gone), (SELECT uuid FROM slice ORDER BY uuid DESC LIMIT 1)
  INTO seen, emptied, log;
  finished := seen < most AND NOT in_months;
  PERFORM ses_ledger_put_down(at, CASE WHEN seen < most THEN behind_all_months ELSE log END, nil, finished, cutoff);
END
$$;

-- They run with somebody else's search path, some of them with the owner's rights: pin ours, temporary objects last.
DO $$
DECLARE
  name regprocedure;
BEGIN
  FOREACH name IN ARRAY ARRAY[
    'ses_ledger_is_let_go(uuid, timestamptz)',
    'email_events_ensure_month(timestamptz)',
    'email_events_ensure_for(text[], uuid[])',
    'ses_ledger_take_up(text)',
    'ses_ledger_put_down(ses_ledger_upkeep, uuid, uuid, boolean, timestamptz)',
    'ses_ledger_empty_payloads(interval, integer)',
    'ses_ledger_empty_bodies(interval, integer)'
  ]::regprocedure[] LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
  END LOOP;
END
$$;
REVOKE EXECUTE ON FUNCTION ses_ledger_take_up(text), ses_ledger_put_down(ses_ledger_upkeep, uuid, uuid, boolean, timestamptz),
                           ses_ledger_empty_bodies(interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ses_ledger_empty_bodies(interval, integer) TO ses_ledger_worker;

-- Who lets go of what. What stays in its row (payloads, bodies) is the worker's, through two functions that reach nothing
-- fresh. What removes rows is not: a worker that could drop history could be made to. DETACH CONCURRENTLY, which alone does
-- not stall who stores, cannot run inside a function either, so there is no function to lend. `ses-ledger retention run`
-- does it, as a scheduled command with a login that is a member of ses_ledger_owner.
ALTER TABLE ses_ledger_horizon ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_months_let_go ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_retention_runs ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON ses_ledger_horizon, ses_ledger_months_let_go, ses_ledger_retention_runs TO ses_ledger_worker, ses_ledger_operator;
CREATE POLICY worker ON ses_ledger_horizon FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY operator ON ses_ledger_horizon FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY worker ON ses_ledger_months_let_go FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY operator ON ses_ledger_months_let_go FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY worker ON ses_ledger_retention_runs FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY operator ON ses_ledger_retention_runs FOR SELECT TO ses_ledger_operator USING (true);

RESET ROLE;
