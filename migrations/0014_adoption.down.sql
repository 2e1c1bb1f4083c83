SET LOCAL ROLE ses_ledger_owner;

DROP TABLE ses_ledger_unmatched, ses_ledger_adopted_logs, ses_ledger_adoptions;

RESET ROLE;
