SET LOCAL ROLE ses_ledger_owner;
DROP TABLE email_logs;
DROP FUNCTION email_logs_normalise();
RESET ROLE;
