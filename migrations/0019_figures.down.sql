-- The figures are gone; those of months whose events were let go cannot be counted again.
SET LOCAL ROLE ses_ledger_owner;
DROP INDEX email_events_stored_at;
ALTER TABLE email_events ALTER COLUMN stored_at SET DEFAULT now();
COMMENT ON COLUMN email_events.stored_at IS 'When the transaction that stored it began';
DROP TABLE ses_ledger_figures;
DROP TABLE email_figures;
RESET ROLE;
