-- The questions that operators and support ask. Each runs with the rights of who asks.
SET LOCAL ROLE ses_ledger_owner;

-- Is anything waiting or failing? One row, cheap at any size: it looks at the last hour of mails and at the waiting rooms.
CREATE VIEW pipeline_health WITH (security_invoker = true) AS
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
COMMENT ON VIEW pipeline_health IS 'One row: mails of the last hour, orphans, quarantine, months for which partitions are ready';

-- What could not be understood or stored, by the way in which it failed.
CREATE VIEW quarantine_failures WITH (security_invoker = true) AS
  SELECT fingerprint, stage, reason, min(failed_at) AS failed_at, count(*) AS bodies, sum(times_seen) AS times_seen,
         min(first_seen_at) AS first_seen_at, max(last_seen_at) AS last_seen_at,
         count(*) FILTER (WHERE last_replayed_at IS NOT NULL) AS replayed
  FROM quarantined_messages
  GROUP BY fingerprint, stage, reason;
COMMENT ON VIEW quarantine_failures IS 'Quarantined bodies grouped by the way in which they failed';

-- What waits longer than it should: events without a mail, mails without an outcome (of the last 14 days), quarantined bodies.
CREATE VIEW stuck WITH (security_invoker = true) AS
  SELECT 'orphan' AS what, uuid AS id, aws_message_id, event_type AS detail, stored_at AS since
  FROM orphaned_events WHERE uuid < ses_ledger_uuid_floor(now() - interval '10 minutes')
  UNION ALL
  SELECT 'mail', uuid, aws_message_id, status, coalesce(delayed_at, sent_at, created_at)
  FROM email_logs
  WHERE uuid >= ses_ledger_uuid_floor(now() - interval '14 days') AND uuid < ses_ledger_uuid_floor(now() - interval '1 hour')
    AND status IN ('queued', 'sent', 'delayed')
  UNION ALL
  SELECT 'quarantine', uuid, NULL, reason, first_seen_at
  FROM quarantined_messages WHERE last_replayed_at IS NULL;
COMMENT ON VIEW stuck IS 'Orphans older than ten minutes, mails of the last 14 days without an outcome after an hour, quarantined bodies';

-- Did she get my mail? Filter by recipient, order by email_log_uuid DESC for the newest mail first.
CREATE VIEW recipient_timeline WITH (security_invoker = true) AS
  SELECT e.recipient, e.email_log_uuid, l.aws_message_id, l.subject, l.status, e.event_type, e.occurred_at,
         e.bounce_type, e.bounce_subtype, e.smtp_status, e.diagnostic, e.complaint_type, e.delay_type, e.link, e.bot,
         e.candidate, e.received_at
  FROM email_events AS e JOIN email_logs AS l ON l.uuid = e.email_log_uuid
  WHERE e.recipient <> '';
COMMENT ON VIEW recipient_timeline IS 'What happened to each recipient, with the mail it belongs to';

RESET ROLE;
