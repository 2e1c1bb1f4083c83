SET LOCAL ROLE ses_ledger_owner;

DROP TABLE ses_ledger_rebuilds;

RESET ROLE;
