WITH alive AS (
  INSERT INTO ses_ledger_workers AS w
  SELECT r.* FROM jsonb_populate_record(NULL::ses_ledger_workers, $1::jsonb ||
    jsonb_build_object('seen_at', now(), 'stopped_at', CASE WHEN $2 THEN now() END)) AS r
  ON CONFLICT (id) DO UPDATE SET
    -- Who has said goodbye stays away, also if an earlier beat comes late.
    queues = excluded.queues, seen_at = excluded.seen_at, stopped_at = coalesce(excluded.stopped_at, w.stopped_at),
    received = excluded.received, stored = excluded.stored, ignored = excluded.ignored, rejected = excluded.rejected,
    released = excluded.released, in_hand = excluded.in_hand, messages_drift = excluded.messages_drift,
    decoded = excluded.decoded, inserted = excluded.inserted, duplicate = excluded.duplicate, orphaned = excluded.orphaned,
    quarantined = excluded.quarantined, events_drift = excluded.events_drift,
    connections = excluded.connections, connections_most = excluded.connections_most
), done AS (
  INSERT INTO ses_ledger_minutes AS m
  SELECT r.* FROM jsonb_populate_recordset(NULL::ses_ledger_minutes, $3::jsonb) AS r
  ON CONFLICT (minute, worker) DO UPDATE SET
    received = excluded.received, redelivered = excluded.redelivered, stored = excluded.stored, ignored = excluded.ignored,
    rejected = excluded.rejected, released = excluded.released, deleted = excluded.deleted,
    inserted = excluded.inserted, duplicate = excluded.duplicate, orphaned = excluded.orphaned, quarantined = excluded.quarantined,
    receives_with_messages = excluded.receives_with_messages, receives_empty = excluded.receives_empty,
    receives_failed = excluded.receives_failed, delete_requests = excluded.delete_requests,
    visibility_requests = excluded.visibility_requests, lags = excluded.lags, queues = excluded.queues
)
INSERT INTO ses_ledger_kinds AS k (event_type, last_occurred_at, last_stored_at)
SELECT event_type, last_occurred_at, last_stored_at
FROM jsonb_to_recordset($4::jsonb) AS r (event_type text, last_occurred_at timestamptz, last_stored_at timestamptz)
ORDER BY event_type
ON CONFLICT (event_type) DO UPDATE SET
  last_occurred_at = greatest(k.last_occurred_at, excluded.last_occurred_at),
  last_stored_at = greatest(k.last_stored_at, excluded.last_stored_at)
