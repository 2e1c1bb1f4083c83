SET LOCAL ROLE ses_ledger_owner;
DROP TABLE ses_ledger_kinds;
DROP TABLE ses_ledger_minutes;
DROP TABLE ses_ledger_workers;
RESET ROLE;
