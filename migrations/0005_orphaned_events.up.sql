-- Events whose mail is not known yet. They wait here, without a time limit of their own, until the log row appears.
SET LOCAL ROLE ses_ledger_owner;

CREATE TABLE orphaned_events (
  -- Serves: the sweep (oldest first) and the listing (newest first); version 7, so ordered by arrival.
  uuid uuid PRIMARY KEY,
  aws_message_id text NOT NULL,
  log_uuid uuid,
  event_type text NOT NULL,
  occurred_at timestamptz NOT NULL,
  time_source text NOT NULL DEFAULT 'event' CHECK (time_source IN ('event', 'mail', 'received')),
  recipient text NOT NULL DEFAULT '',
  candidate boolean NOT NULL DEFAULT false,
  bounce_type text,
  bounce_subtype text,
  smtp_status text,
  diagnostic text,
  complaint_type text,
  complaint_subtype text,
  delay_type text,
  link text,
  link_digest uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  ip text,
  user_agent text,
  bot text,
  feedback_id text,
  reporting_mta text,
  payload jsonb,
  queue text NOT NULL,
  sqs_message_id text NOT NULL,
  sns_message_id text,
  eventbridge_id text,
  received_at timestamptz NOT NULL,
  stored_at timestamptz NOT NULL DEFAULT now(),
  -- Two bounces of one recipient are one row of a mail, but may state different facts (a transient one, a permanent one).
  -- While the mail is unknown nobody merges facts, so here they stay apart: see email_events for the rule they end in.
  -- So do reports with and without the log's own id: the same bounce may come on two ways, one of which knows no tags.
  fact_key text NOT NULL GENERATED ALWAYS AS (
    coalesce(lower(bounce_type), '') || '/' || coalesce(lower(complaint_type), '') || '/' ||
    CASE WHEN complaint_subtype IS NULL THEN '' ELSE 'suppressed' END || '/' || coalesce(log_uuid::text, '')
  ) STORED
);

DO $$
BEGIN
  ALTER TABLE orphaned_events ALTER COLUMN payload SET COMPRESSION lz4;
EXCEPTION
  WHEN feature_not_supported THEN NULL;
END
$$;

-- The rules of email_events with the SES id in place of the log. Serve the conflict checks and the look-up by id.
CREATE UNIQUE INDEX orphaned_events_once ON orphaned_events (aws_message_id, event_type, recipient, occurred_at, fact_key)
  WHERE event_type NOT IN ('open', 'click');
CREATE UNIQUE INDEX orphaned_events_again ON orphaned_events (aws_message_id, event_type, occurred_at, recipient, link_digest)
  WHERE event_type IN ('open', 'click');

COMMENT ON TABLE orphaned_events IS 'Events of mails that have no log row yet; a sweep attaches them when it appears';
COMMENT ON COLUMN orphaned_events.uuid IS 'Our id of the event, UUID version 7; kept when it is attached';
COMMENT ON COLUMN orphaned_events.aws_message_id IS 'The id that SES gave the mail, bare';
COMMENT ON COLUMN orphaned_events.log_uuid IS 'The log''s own id, if the mail carried it in its tag';
COMMENT ON COLUMN orphaned_events.event_type IS 'See email_events';
COMMENT ON COLUMN orphaned_events.occurred_at IS 'See email_events';
COMMENT ON COLUMN orphaned_events.time_source IS 'See email_events';
COMMENT ON COLUMN orphaned_events.recipient IS 'See email_events';
COMMENT ON COLUMN orphaned_events.candidate IS 'See email_events';
COMMENT ON COLUMN orphaned_events.bounce_type IS 'See email_events';
COMMENT ON COLUMN orphaned_events.bounce_subtype IS 'See email_events';
COMMENT ON COLUMN orphaned_events.smtp_status IS 'See email_events';
COMMENT ON COLUMN orphaned_events.diagnostic IS 'See email_events';
COMMENT ON COLUMN orphaned_events.complaint_type IS 'See email_events';
COMMENT ON COLUMN orphaned_events.complaint_subtype IS 'See email_events';
COMMENT ON COLUMN orphaned_events.delay_type IS 'See email_events';
COMMENT ON COLUMN orphaned_events.link IS 'See email_events';
COMMENT ON COLUMN orphaned_events.link_digest IS 'See email_events';
COMMENT ON COLUMN orphaned_events.ip IS 'See email_events';
COMMENT ON COLUMN orphaned_events.user_agent IS 'See email_events';
COMMENT ON COLUMN orphaned_events.bot IS 'See email_events';
COMMENT ON COLUMN orphaned_events.feedback_id IS 'See email_events';
COMMENT ON COLUMN orphaned_events.reporting_mta IS 'See email_events';
COMMENT ON COLUMN orphaned_events.payload IS 'See email_events';
COMMENT ON COLUMN orphaned_events.queue IS 'See email_events';
COMMENT ON COLUMN orphaned_events.sqs_message_id IS 'See email_events';
COMMENT ON COLUMN orphaned_events.sns_message_id IS 'See email_events';
COMMENT ON COLUMN orphaned_events.eventbridge_id IS 'See email_events';
COMMENT ON COLUMN orphaned_events.received_at IS 'See email_events';
COMMENT ON COLUMN orphaned_events.stored_at IS 'When it was parked';
COMMENT ON COLUMN orphaned_events.fact_key IS 'What decides the fact that the event states, and its mail';

RESET ROLE;
