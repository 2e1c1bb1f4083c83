SET LOCAL ROLE ses_ledger_owner;
DROP VIEW recipient_timeline;
DROP VIEW stuck;
DROP VIEW quarantine_failures;
DROP VIEW pipeline_health;
RESET ROLE;
