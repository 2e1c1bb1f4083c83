SET LOCAL ROLE ses_ledger_owner;
DROP FUNCTION email_events_ensure_for(text[], uuid[]);
DROP FUNCTION email_events_ensure_ahead(integer);
DROP FUNCTION email_events_ensure_month(timestamptz);
DROP TABLE email_events;
RESET ROLE;
