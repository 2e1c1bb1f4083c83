-- Takes the mirror of {table} away. The mails that it has made stay, with their events.
BEGIN;
DROP VIEW IF EXISTS {view};
DROP TRIGGER IF EXISTS ses_ledger_mirror ON {table};
DROP FUNCTION IF EXISTS {schema}.{function}();
COMMIT;
