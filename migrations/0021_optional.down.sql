SET LOCAL ROLE ses_ledger_owner;
-- The other optional indexes need nothing of this. They go with their tables, or by `ses-ledger migrate --without`.
DROP INDEX IF EXISTS email_logs_search_recipients;
DROP FUNCTION ses_ledger_written_to(text[]);
RESET ROLE;
