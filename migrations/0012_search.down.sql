SET LOCAL ROLE ses_ledger_owner;
DROP INDEX email_logs_addresses;
DROP FUNCTION ses_ledger_addresses(text[]);
RESET ROLE;
