SET LOCAL ROLE ses_ledger_owner;
DROP FUNCTION ses_ledger_bounce_class_of(text, text, text);
DROP FUNCTION ses_ledger_fact(text, text, text);
DROP FUNCTION ses_ledger_message_id(text);
DROP FUNCTION ses_ledger_uuid_time(uuid);
DROP FUNCTION ses_ledger_uuid_floor(timestamptz);
DROP FUNCTION ses_ledger_uuid_v7();
DROP TYPE ses_ledger_bounce_class;
RESET ROLE;
