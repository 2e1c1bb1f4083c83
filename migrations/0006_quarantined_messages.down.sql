SET LOCAL ROLE ses_ledger_owner;
DROP TABLE quarantined_messages;
RESET ROLE;
