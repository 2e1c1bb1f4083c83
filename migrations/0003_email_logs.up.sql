-- One row per mail. The sender writes the first part, ses-ledger the facts.
SET LOCAL ROLE ses_ledger_owner;

CREATE TABLE email_logs (
  uuid uuid PRIMARY KEY DEFAULT ses_ledger_uuid_v7(),
  aws_message_id text,
  sender text,
  recipients text[] NOT NULL DEFAULT '{}',
  subject text,
  template_name text,
  campaign_id text,
  configuration_set text,
  tags jsonb NOT NULL DEFAULT '{}',
  headers jsonb,
  body_full text,
  created_at timestamptz NOT NULL DEFAULT now(),

  sent_at timestamptz,
  delivered_at timestamptz,
  delayed_at timestamptz,
  bounced_at timestamptz,
  complained_at timestamptz,
  rejected_at timestamptz,
  failed_at timestamptz,
  opened_at timestamptz,
  clicked_at timestamptz,
  open_count integer NOT NULL DEFAULT 0,
  click_count integer NOT NULL DEFAULT 0,
  bounce_class ses_ledger_bounce_class,

  -- The one rule, first match from the top. Nobody can write it, so nothing can move it backwards.
  status text NOT NULL GENERATED ALWAYS AS (
    CASE
      WHEN rejected_at IS NOT NULL THEN 'rejected'
      WHEN failed_at IS NOT NULL THEN 'failed'
      WHEN complained_at IS NOT NULL THEN 'complained'
      WHEN bounced_at IS NOT NULL AND bounce_class IS DISTINCT FROM 'transient'::ses_ledger_bounce_class THEN 'bounced'
      WHEN clicked_at IS NOT NULL THEN 'clicked'
      WHEN opened_at IS NOT NULL THEN 'opened'
      WHEN delivered_at IS NOT NULL THEN 'delivered'
      WHEN bounced_at IS NOT NULL THEN 'soft_bounced'
      WHEN delayed_at IS NOT NULL THEN 'delayed'
      WHEN sent_at IS NOT NULL THEN 'sent'
      ELSE 'queued'
    END
  ) STORED
)
-- Facts are updated in place a few times in a row's life: room on the page keeps those updates off the indexes.
WITH (fillfactor = 85);

-- No index on status or on a fact that most mails get: each would cost the in-place updates.

-- Serves: the look-up of every event's mail. One log per SES id.
CREATE UNIQUE INDEX email_logs_aws_message_id ON email_logs (aws_message_id) WHERE aws_message_id IS NOT NULL;
-- Serve: "whom should I not write to again", newest first. Rare facts, so small and seldom touched.
CREATE INDEX email_logs_bounced ON email_logs (uuid) WHERE bounced_at IS NOT NULL;
CREATE INDEX email_logs_complained ON email_logs (uuid) WHERE complained_at IS NOT NULL;

COMMENT ON TABLE email_logs IS 'One row per mail: what the sender knows, and the facts that follow from the events of SES';
COMMENT ON COLUMN email_logs.uuid IS 'Our id of the mail, UUID version 7; other versions work too. Decides the monthly partition of its events';
COMMENT ON COLUMN email_logs.aws_message_id IS 'The id that SES gave the mail, bare: <>, @domain and blanks are removed when it is written, empty becomes NULL';
COMMENT ON COLUMN email_logs.sender IS 'From address, as the sender wrote it';
COMMENT ON COLUMN email_logs.recipients IS 'To, Cc and Bcc addresses, as the sender wrote them';
COMMENT ON COLUMN email_logs.subject IS 'Subject of the mail';
COMMENT ON COLUMN email_logs.template_name IS 'Template that the mail was made from';
COMMENT ON COLUMN email_logs.campaign_id IS 'Campaign that the mail belongs to';
COMMENT ON COLUMN email_logs.configuration_set IS 'SES configuration set that the mail was sent with';
COMMENT ON COLUMN email_logs.tags IS 'Anything that the sender wants to group by';
COMMENT ON COLUMN email_logs.headers IS 'Headers of the mail, if the sender keeps them';
COMMENT ON COLUMN email_logs.body_full IS 'Body of the mail, if the sender keeps it';
COMMENT ON COLUMN email_logs.created_at IS 'When the sender wrote the row';
COMMENT ON COLUMN email_logs.sent_at IS 'First time that SES accepted the mail (send)';
COMMENT ON COLUMN email_logs.delivered_at IS 'First time that a recipient''s server took it (delivery)';
COMMENT ON COLUMN email_logs.delayed_at IS 'First time that a delivery was put off (delivery_delay)';
COMMENT ON COLUMN email_logs.bounced_at IS 'First time that it came back (bounce), or that SES did not send it because of a suppression list';
COMMENT ON COLUMN email_logs.complained_at IS 'First time that a recipient called it spam (complaint)';
COMMENT ON COLUMN email_logs.rejected_at IS 'When SES refused to send it (reject)';
COMMENT ON COLUMN email_logs.failed_at IS 'When its template could not be rendered (rendering_failure)';
COMMENT ON COLUMN email_logs.opened_at IS 'First time that it was opened (open)';
COMMENT ON COLUMN email_logs.clicked_at IS 'First time that a link was clicked (click)';
COMMENT ON COLUMN email_logs.open_count IS 'Number of distinct opens';
COMMENT ON COLUMN email_logs.click_count IS 'Number of distinct clicks';
COMMENT ON COLUMN email_logs.bounce_class IS 'The most final of its bounces: transient < undetermined < permanent';
COMMENT ON COLUMN email_logs.status IS 'What became of the mail in one word; derived from the facts, never written';

CREATE FUNCTION email_logs_normalise() RETURNS trigger
  LANGUAGE plpgsql
  AS $$
BEGIN
  NEW.aws_message_id := ses_ledger_message_id(NEW.aws_message_id);
  RETURN NEW;
END
$$;
-- A trigger runs with the writer's search path: pin ours.
DO $$
BEGIN
  EXECUTE format('ALTER FUNCTION email_logs_normalise() SET search_path = %I, pg_temp', current_schema());
END
$$;

CREATE TRIGGER email_logs_normalise_new BEFORE INSERT ON email_logs
  FOR EACH ROW WHEN (NEW.aws_message_id IS NOT NULL) EXECUTE FUNCTION email_logs_normalise();
CREATE TRIGGER email_logs_normalise_changed BEFORE UPDATE OF aws_message_id ON email_logs
  FOR EACH ROW WHEN (NEW.aws_message_id IS DISTINCT FROM OLD.aws_message_id) EXECUTE FUNCTION email_logs_normalise();

RESET ROLE;
