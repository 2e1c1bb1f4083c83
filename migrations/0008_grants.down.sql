SET LOCAL ROLE ses_ledger_owner;
DROP POLICY worker ON email_logs;
DROP POLICY worker ON email_events;
DROP POLICY worker ON orphaned_events;
DROP POLICY worker ON quarantined_messages;
DROP POLICY sender ON email_logs;
DROP POLICY operator ON email_logs;
DROP POLICY operator ON email_events;
DROP POLICY operator ON orphaned_events;
DROP POLICY operator ON quarantined_messages;
ALTER TABLE email_logs DISABLE ROW LEVEL SECURITY;
ALTER TABLE email_events DISABLE ROW LEVEL SECURITY;
ALTER TABLE orphaned_events DISABLE ROW LEVEL SECURITY;
ALTER TABLE quarantined_messages DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON email_logs, email_events, orphaned_events, quarantined_messages,
              pipeline_health, quarantine_failures, stuck, recipient_timeline
  FROM ses_ledger_worker, ses_ledger_sender, ses_ledger_operator;
REVOKE EXECUTE ON FUNCTION email_events_ensure_month(timestamptz), email_events_ensure_ahead(integer),
                           email_events_ensure_for(text[], uuid[]) FROM ses_ledger_worker;
GRANT EXECUTE ON FUNCTION email_events_ensure_month(timestamptz), email_events_ensure_ahead(integer),
                          email_events_ensure_for(text[], uuid[]) TO PUBLIC;
RESET ROLE;
REVOKE SELECT ON _sqlx_migrations FROM ses_ledger_worker, ses_ledger_operator;
