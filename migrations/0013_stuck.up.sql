-- What is stuck can be listed at any size, and be removed, visibly.
SET LOCAL ROLE ses_ledger_owner;

-- Serves: the groups of the quarantine, without reading a body. A million bodies are gigabytes; this is a hundred megabytes.
-- It takes the in-place updates of bodies that are seen again, which is cheap: what is quarantined is rare.
CREATE INDEX quarantined_messages_groups ON quarantined_messages (fingerprint, last_seen_at)
  INCLUDE (stage, reason, times_seen, first_seen_at, last_replayed_at, last_replay_outcome);
-- Serves: the bodies of one reason, newest first.
CREATE INDEX quarantined_messages_reason ON quarantined_messages (reason, uuid);

COMMENT ON COLUMN quarantined_messages.last_replay_outcome IS
  'What came of it, for example: stored 2, duplicate 1. Begins with still where the body was not understood or not stored again';

-- What was removed, so that nothing is ever missing without a trace. Nobody but its owner can change it.
CREATE TABLE ses_ledger_removals (
  uuid uuid PRIMARY KEY,
  what text NOT NULL CHECK (what IN ('orphans', 'quarantine')),
  reason text NOT NULL CHECK (reason <> ''),
  removed bigint NOT NULL,
  oldest_at timestamptz,
  newest_at timestamptz,
  removed_by text NOT NULL DEFAULT session_user,
  began_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE ses_ledger_removals IS 'Orphaned events and quarantined bodies that somebody removed: one row per command';
COMMENT ON COLUMN ses_ledger_removals.uuid IS 'Our id of the removal, UUID version 7';
COMMENT ON COLUMN ses_ledger_removals.what IS 'orphans or quarantine';
COMMENT ON COLUMN ses_ledger_removals.reason IS 'Which of them, for example: older than 90d, reason no_mail';
COMMENT ON COLUMN ses_ledger_removals.removed IS 'How many events or bodies';
COMMENT ON COLUMN ses_ledger_removals.oldest_at IS 'When the first of them was parked or first seen';
COMMENT ON COLUMN ses_ledger_removals.newest_at IS 'When the last of them was parked or last seen';
COMMENT ON COLUMN ses_ledger_removals.removed_by IS 'The login that removed them';
COMMENT ON COLUMN ses_ledger_removals.began_at IS 'When the first slice was removed';
COMMENT ON COLUMN ses_ledger_removals.ended_at IS 'When the last slice was removed';
ALTER TABLE ses_ledger_removals ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON ses_ledger_removals TO ses_ledger_worker, ses_ledger_operator;
CREATE POLICY worker ON ses_ledger_removals FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY operator ON ses_ledger_removals FOR SELECT TO ses_ledger_operator USING (true);

-- Removing is neither the worker's (it cannot delete history) nor the operator's (who reads). It is for members of
-- ses_ledger_owner, and for logins that are granted these two functions and nothing else of the owner's. There is no
-- fifth group role, because it would have to be made by an administrator wherever the login that migrates may not.
-- The functions run with the owner's rights, so that whoever removes something cannot do so without the row that tells it.

-- Adds a slice to what a removal has removed. Called by the two functions below only.
CREATE FUNCTION ses_ledger_note_removal(run uuid, of_what text, why text, slice bigint, oldest timestamptz, newest timestamptz)
  RETURNS void LANGUAGE plpgsql
  AS $$
BEGIN
  INSERT INTO ses_ledger_removals AS r (uuid, what, reason, removed, oldest_at, newest_at)
  VALUES (run, of_what, why, slice, oldest, newest)
  ON CONFLICT (uuid) DO UPDATE SET
    removed = r.removed + excluded.removed,
    oldest_at = least(r.oldest_at, excluded.oldest_at),
    newest_at = greatest(r.newest_at, excluded.newest_at),
    ended_at = excluded.ended_at
  WHERE (r.what, r.reason, r.removed_by) = (excluded.what, excluded.reason, excluded.removed_by);
  IF NOT FOUND THEN
    RAISE invalid_parameter_value USING MESSAGE = 'this removal is somebody else''s, or of something else';
  END IF;
END
$$;

-- Removes those of these orphans that are older and whose mail is still unknown; says how many.
CREATE FUNCTION ses_ledger_expire_orphans(run uuid, ids uuid[], older_than interval, why text)
  RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC'
  AS $$
DECLARE
  gone record;
BEGIN
  -- It runs with the owner's rights: what is fresh is out of its reach.
  IF older_than IS NULL OR older_than < interval '1 day' THEN
    RAISE invalid_parameter_value USING MESSAGE = 'orphaned events have to be older than a day to be removed';
  END IF;
  WITH removed AS (
    DELETE FROM orphaned_events AS o
    WHERE o.uuid = ANY (ids) AND o.stored_at < now() - older_than
      AND NOT EXISTS (SELECT FROM email_logs AS l WHERE l.aws_message_id = o.aws_message_id)
      AND NOT EXISTS (SELECT FROM email_logs AS l WHERE l.uuid = o.log_uuid)
    RETURNING o.stored_at
  )
  SELECT count(*) AS removed, min(stored_at) AS oldest, max(stored_at) AS newest INTO gone FROM removed;
  IF gone.removed > 0 THEN
    PERFORM ses_ledger_note_removal(run, 'orphans', why, gone.removed, gone.oldest, gone.newest);
  END IF;
  RETURN gone.removed;
END
$$;

-- Removes these bodies; says how many.
CREATE FUNCTION ses_ledger_drop_quarantined(run uuid, ids uuid[], why text)
  RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC'
  AS $$
DECLARE
  gone record;
BEGIN
  WITH removed AS (
    DELETE FROM quarantined_messages AS q WHERE q.uuid = ANY (ids) RETURNING q.first_seen_at, q.last_seen_at
  )
  SELECT count(*) AS removed, min(first_seen_at) AS oldest, max(last_seen_at) AS newest INTO gone FROM removed;
  IF gone.removed > 0 THEN
    PERFORM ses_ledger_note_removal(run, 'quarantine', why, gone.removed, gone.oldest, gone.newest);
  END IF;
  RETURN gone.removed;
END
$$;

DO $$
DECLARE
  name text;
BEGIN
  -- They run with somebody else's search path and the owner's rights: pin ours, temporary objects last.
  FOREACH name IN ARRAY ARRAY[
    'ses_ledger_note_removal(uuid, text, text, bigint, timestamptz, timestamptz)',
    'ses_ledger_expire_orphans(uuid, uuid[], interval, text)',
    'ses_ledger_drop_quarantined(uuid, uuid[], text)'
  ] LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
  END LOOP;
END
$$;

RESET ROLE;
