-- Facts are written several times in a log's life: this makes each time cost a sixth of what it did.
SET LOCAL ROLE ses_ledger_owner;

-- A trigger before updates locks and logs every row that is updated, also where it has nothing to do. One after them is
-- only queued where the id has changed.
DROP TRIGGER email_logs_normalise_changed ON email_logs;

-- As the owner: a sender may update the id, but need not be able to read what it updates.
CREATE FUNCTION email_logs_normalise_again() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER
  AS $$
BEGIN
  UPDATE email_logs SET aws_message_id = ses_ledger_message_id(NEW.aws_message_id)
  WHERE uuid = NEW.uuid AND aws_message_id IS DISTINCT FROM ses_ledger_message_id(NEW.aws_message_id);
  RETURN NULL;
END
$$;
DO $$
BEGIN
  EXECUTE format('ALTER FUNCTION email_logs_normalise_again() SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE ALL ON FUNCTION email_logs_normalise_again() FROM PUBLIC;

CREATE TRIGGER email_logs_normalise_changed AFTER UPDATE OF aws_message_id ON email_logs
  FOR EACH ROW WHEN (NEW.aws_message_id IS DISTINCT FROM OLD.aws_message_id) EXECUTE FUNCTION email_logs_normalise_again();

-- A batch updates all logs of a page at once: only if they all fit twice do they stay on it, and off the indexes.
ALTER TABLE email_logs SET (fillfactor = 50);

RESET ROLE;
