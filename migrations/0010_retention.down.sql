SET LOCAL ROLE ses_ledger_owner;
DROP FUNCTION ses_ledger_empty_payloads(interval, integer);
DROP TABLE ses_ledger_upkeep;
RESET ROLE;
