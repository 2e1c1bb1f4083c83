-- Mirrors {table}: each row that is written there is a mail of ses-ledger at once, with the same key, and {view}
-- shows its rows together with what became of them. Your table stays the truth about your mails; nothing of it is changed.
-- Rows that are there already come with: ses-ledger adopt
-- Run it as the owner of {table} who may become ses_ledger_owner, or as a superuser.
BEGIN;

SET LOCAL ROLE ses_ledger_owner;
-- With the rights of ses_ledger_owner, so that your application needs none here.
CREATE OR REPLACE FUNCTION {schema}.{function}() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET timezone = 'UTC'
  AS $mirror$
DECLARE
  ses_id text := {message_id};
BEGIN
  -- One mail per id: of two rows with the same one, the first has it.
  IF ses_id IS NOT NULL AND EXISTS (SELECT FROM email_logs AS l WHERE l.aws_message_id = ses_id) THEN
    ses_id := NULL;
  END IF;
  INSERT INTO email_logs (uuid, aws_message_id{fields})
  VALUES (NEW.{id}, ses_id{values}) ON CONFLICT DO NOTHING;
  IF NOT FOUND AND ses_id IS NOT NULL THEN
    UPDATE email_logs SET aws_message_id = ses_id WHERE uuid = NEW.{id} AND aws_message_id IS NULL;
  END IF;
  RETURN NULL;
EXCEPTION
  -- Whatever is wrong here must not stop your mail from being sent: `ses-ledger adopt` brings the row later.
  WHEN OTHERS THEN
    RAISE WARNING 'ses-ledger could not mirror a row of {table}: %', SQLSTATE;
    RETURN NULL;
END
$mirror$;
RESET ROLE;

CREATE OR REPLACE TRIGGER ses_ledger_mirror AFTER INSERT OR UPDATE OF {watched} ON {table}
  FOR EACH ROW EXECUTE FUNCTION {schema}.{function}();

-- Your columns, then ours.
CREATE OR REPLACE VIEW {view} AS
  SELECT t.*, l.status AS ses_status, l.sent_at AS ses_sent_at, l.delivered_at AS ses_delivered_at,
         l.delayed_at AS ses_delayed_at, l.bounced_at AS ses_bounced_at, l.bounce_class::text AS ses_bounce_class,
         l.complained_at AS ses_complained_at, l.rejected_at AS ses_rejected_at, l.failed_at AS ses_failed_at,
         l.opened_at AS ses_opened_at, l.clicked_at AS ses_clicked_at, l.open_count AS ses_open_count,
         l.click_count AS ses_click_count
  FROM {table} AS t LEFT JOIN {schema}.email_logs AS l ON l.uuid = t.{id};

COMMIT;
