SET LOCAL ROLE ses_ledger_owner;
DROP FUNCTION ses_ledger_drop_quarantined(uuid, uuid[], text);
DROP FUNCTION ses_ledger_expire_orphans(uuid, uuid[], interval, text);
DROP FUNCTION ses_ledger_note_removal(uuid, text, text, bigint, timestamptz, timestamptz);
DROP TABLE ses_ledger_removals;
COMMENT ON COLUMN quarantined_messages.last_replay_outcome IS 'What came of it';
DROP INDEX quarantined_messages_reason;
DROP INDEX quarantined_messages_groups;
RESET ROLE;
