SET LOCAL ROLE ses_ledger_owner;
ALTER TABLE email_logs SET (fillfactor = 85);
DROP TRIGGER email_logs_normalise_changed ON email_logs;
DROP FUNCTION email_logs_normalise_again();
CREATE TRIGGER email_logs_normalise_changed BEFORE UPDATE OF aws_message_id ON email_logs
  FOR EACH ROW WHEN (NEW.aws_message_id IS DISTINCT FROM OLD.aws_message_id) EXECUTE FUNCTION email_logs_normalise();
RESET ROLE;
