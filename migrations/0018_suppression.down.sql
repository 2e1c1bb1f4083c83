-- Who was taken off, and what was only known here, is forgotten. What the events say is read again on the way up.
SET LOCAL ROLE ses_ledger_owner;
DROP TRIGGER ses_ledger_note_suppression ON email_events;
DROP FUNCTION ses_ledger_remove_suppression(text, text);
DROP FUNCTION ses_ledger_suppressed(text, boolean);
DROP FUNCTION ses_ledger_suppressed(text[], boolean);
DROP FUNCTION ses_ledger_note_suppression();
DROP FUNCTION ses_ledger_suppression_key(text);
DROP FUNCTION ses_ledger_suppression_cause(text, text, text, text, text);
DROP TABLE ses_ledger_suppression_removals;
DROP TABLE ses_ledger_suppressions;
RESET ROLE;
