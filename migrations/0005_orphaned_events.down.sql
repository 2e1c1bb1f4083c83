SET LOCAL ROLE ses_ledger_owner;
DROP TABLE orphaned_events;
RESET ROLE;
