-- Who may do what. Row level security is on for every table that holds mail, so that a deployment can narrow it further.
SET LOCAL ROLE ses_ledger_owner;

ALTER TABLE email_logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE email_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE orphaned_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE quarantined_messages ENABLE ROW LEVEL SECURITY;

-- The worker: adds events, merges facts, moves orphans, quarantines. It cannot drop, alter, or delete history.
GRANT SELECT ON email_logs TO ses_ledger_worker;
GRANT UPDATE (aws_message_id, sent_at, delivered_at, delayed_at, bounced_at, complained_at, rejected_at, failed_at,
              opened_at, clicked_at, open_count, click_count, bounce_class) ON email_logs TO ses_ledger_worker;
GRANT SELECT, INSERT ON email_events TO ses_ledger_worker;
-- UPDATE only to lock the rows that it is about to attach.
GRANT SELECT, INSERT, UPDATE, DELETE ON orphaned_events TO ses_ledger_worker;
GRANT SELECT, INSERT, UPDATE ON quarantined_messages TO ses_ledger_worker;
CREATE POLICY worker ON email_logs TO ses_ledger_worker USING (true);
CREATE POLICY worker ON email_events TO ses_ledger_worker USING (true);
CREATE POLICY worker ON orphaned_events TO ses_ledger_worker USING (true);
CREATE POLICY worker ON quarantined_messages TO ses_ledger_worker USING (true);

-- The sender: its own part of a log row. Facts are out of its reach.
GRANT SELECT ON email_logs TO ses_ledger_sender;
GRANT INSERT (uuid, aws_message_id, sender, recipients, subject, template_name, campaign_id, configuration_set, tags, headers, body_full, created_at),
      UPDATE (aws_message_id, sender, recipients, subject, template_name, campaign_id, configuration_set, tags, headers, body_full)
  ON email_logs TO ses_ledger_sender;
CREATE POLICY sender ON email_logs TO ses_ledger_sender USING (true);

-- The operator reads.
GRANT SELECT ON email_logs, email_events, orphaned_events, quarantined_messages,
                pipeline_health, quarantine_failures, stuck, recipient_timeline TO ses_ledger_operator;
GRANT SELECT ON pipeline_health, quarantine_failures, stuck TO ses_ledger_worker;
CREATE POLICY operator ON email_logs FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON email_events FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON orphaned_events FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON quarantined_messages FOR SELECT TO ses_ledger_operator USING (true);

-- Making partitions is the worker's, through these functions only.
REVOKE EXECUTE ON FUNCTION email_events_ensure_month(timestamptz), email_events_ensure_ahead(integer),
                           email_events_ensure_for(text[], uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION email_events_ensure_month(timestamptz), email_events_ensure_ahead(integer),
                          email_events_ensure_for(text[], uuid[]) TO ses_ledger_worker;

RESET ROLE;

-- The history of migrations belongs to the login that migrates. The worker compares it with its own before it starts.
GRANT SELECT ON _sqlx_migrations TO ses_ledger_worker, ses_ledger_operator;
