-- Who was erased stays erased. That they were is not known any more.
SET LOCAL ROLE ses_ledger_owner;
DROP FUNCTION ses_ledger_erased_name(text);
DROP TABLE ses_ledger_erasures;
DROP TABLE ses_ledger_erased;
DROP TABLE ses_ledger_erasure_key;
RESET ROLE;
