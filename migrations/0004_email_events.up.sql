-- One row per thing that happened to one recipient of one mail.
SET LOCAL ROLE ses_ledger_owner;

CREATE TABLE email_events (
  uuid uuid NOT NULL,
  email_log_uuid uuid NOT NULL REFERENCES email_logs (uuid) ON DELETE CASCADE,
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
  -- Serves: the events of a mail, and newest mails first.
  PRIMARY KEY (email_log_uuid, uuid)
) PARTITION BY RANGE (email_log_uuid);

-- lz4 costs a fraction of the default for payloads of 2 kB and more. Not every build of PostgreSQL has it.
DO $$
BEGIN
  ALTER TABLE email_events ALTER COLUMN payload SET COMPRESSION lz4;
EXCEPTION
  WHEN feature_not_supported THEN NULL;
END
$$;

-- The two rules of uniqueness. Each is the exact complement of the other, and every column in them is NOT NULL:
-- a type in neither, or a NULL in a key, would let duplicates in.
-- Serves: the conflict check of what happens once per recipient.
CREATE UNIQUE INDEX email_events_once ON email_events (email_log_uuid, event_type, recipient)
  WHERE event_type NOT IN ('open', 'click');
-- Serves: the conflict check of what happens again and again. The link as a digest: an index entry holds 2.7 kB, a link may have 9.
CREATE UNIQUE INDEX email_events_again ON email_events (email_log_uuid, event_type, occurred_at, recipient, link_digest)
  WHERE event_type IN ('open', 'click');
-- Serves: "did she get my mail?", newest first.
CREATE INDEX email_events_recipient ON email_events (recipient, email_log_uuid) WHERE recipient <> '';

COMMENT ON TABLE email_events IS 'What SES reported: one row per thing that happened to one recipient of one mail. Partitioned by the month of the mail';
COMMENT ON COLUMN email_events.uuid IS 'Our id of the event, UUID version 7 of the moment when it was received';
COMMENT ON COLUMN email_events.email_log_uuid IS 'The mail';
COMMENT ON COLUMN email_events.event_type IS 'send, delivery, bounce, complaint, reject, open, click, rendering_failure, delivery_delay, subscription; a kind that SES adds later under its own name';
COMMENT ON COLUMN email_events.occurred_at IS 'When it happened, as SES says';
COMMENT ON COLUMN email_events.time_source IS 'Where occurred_at comes from: the event; the mail (the event had no readable time); received (nothing had)';
COMMENT ON COLUMN email_events.recipient IS 'The recipient, domain in lower case; empty where SES does not say who';
COMMENT ON COLUMN email_events.candidate IS 'The recipient is only one of several whom SES names as possible (complaints)';
COMMENT ON COLUMN email_events.bounce_type IS 'Permanent, Transient or Undetermined';
COMMENT ON COLUMN email_events.bounce_subtype IS 'For example General, NoEmail, MailboxFull, OnAccountSuppressionList';
COMMENT ON COLUMN email_events.smtp_status IS 'Enhanced status code of the recipient''s server, for example 5.1.1';
COMMENT ON COLUMN email_events.diagnostic IS 'What the recipient''s server or SES said about it';
COMMENT ON COLUMN email_events.complaint_type IS 'Feedback type: abuse, auth-failure, fraud, not-spam, other, virus';
COMMENT ON COLUMN email_events.complaint_subtype IS 'Set where SES did not send because of a suppression list';
COMMENT ON COLUMN email_events.delay_type IS 'For example MailboxFull, TransientCommunicationFailure';
COMMENT ON COLUMN email_events.link IS 'The link that was clicked';
COMMENT ON COLUMN email_events.link_digest IS 'First 128 bits of the SHA-256 of the link; zero without a link';
COMMENT ON COLUMN email_events.ip IS 'Address that opened or clicked, or of the recipient''s server';
COMMENT ON COLUMN email_events.user_agent IS 'Program that opened, clicked or complained';
COMMENT ON COLUMN email_events.bot IS 'Likely or Unlikely, as SES guesses for opens and clicks; NULL is unknown';
COMMENT ON COLUMN email_events.feedback_id IS 'SES''s id of a bounce or complaint';
COMMENT ON COLUMN email_events.reporting_mta IS 'Server that reported it';
COMMENT ON COLUMN email_events.payload IS 'What is kept of the event, narrowed to this recipient';
COMMENT ON COLUMN email_events.queue IS 'Queue that it came from';
COMMENT ON COLUMN email_events.sqs_message_id IS 'SQS message that brought it';
COMMENT ON COLUMN email_events.sns_message_id IS 'SNS notification that brought it, if any';
COMMENT ON COLUMN email_events.eventbridge_id IS 'EventBridge event that brought it, if any';
COMMENT ON COLUMN email_events.received_at IS 'When the worker received it';
COMMENT ON COLUMN email_events.stored_at IS 'When the transaction that stored it began';

-- A catch-all at each end. Between them every month gets a partition of its own, ahead of time or at the first event,
-- so that adding a month never has to move a row. Ids that are not version 7 land anywhere, and work.
CREATE TABLE email_events_before_2015 PARTITION OF email_events
  FOR VALUES FROM (MINVALUE) TO ('014aa2ca-b000-0000-0000-000000000000');
CREATE TABLE email_events_after_2049 PARTITION OF email_events
  FOR VALUES FROM ('024bce5c-f000-0000-0000-000000000000') TO (MAXVALUE);

-- Makes the partition of a month if it is not there; says whether it made it. Outside 2015 to 2049 there is none to make.
-- Runs as the owner, so that the worker needs no right to create tables. Attaching locks email_logs for writers, because of
-- the reference: while it waits for a sender's open transaction, all others wait behind it. So it rather tries again later.
CREATE FUNCTION email_events_ensure_month(month timestamptz) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET timezone = 'UTC' SET lock_timeout = '1s'
  AS $$
DECLARE
  first timestamptz := date_trunc('month', month, 'UTC');
  next timestamptz := date_trunc('month', month, 'UTC') + interval '1 month';
  name text := 'email_events_' || to_char(month AT TIME ZONE 'UTC', '"y"YYYY"m"MM');
BEGIN
  IF first < timestamptz '2015-01-01 00:00:00+00' OR first >= timestamptz '2050-01-01 00:00:00+00' THEN
    RETURN false;
  END IF;
  IF to_regclass(name) IS NOT NULL THEN
    RETURN false;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext('ses_ledger partitions'));
  IF to_regclass(name) IS NOT NULL THEN
    RETURN false;  -- somebody made it while we waited
  END IF;
  -- Made apart and attached: creating it in place would lock readers out of the whole table.
  EXECUTE format('CREATE TABLE %I (LIKE email_events INCLUDING ALL)', name);
  EXECUTE format('ALTER TABLE email_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                 name, ses_ledger_uuid_floor(first), ses_ledger_uuid_floor(next));
  RETURN true;
END
$$;

-- Makes the partitions from last month to so many months ahead; says how many were missing.
CREATE FUNCTION email_events_ensure_ahead(months integer) RETURNS integer
  LANGUAGE sql VOLATILE
  AS $$
    SELECT count(*) FILTER (WHERE email_events_ensure_month(now() + make_interval(months => n)))::integer
    FROM generate_series(-1, months) AS n
  $$;

-- Makes the partitions that the events of these mails need; says how many were missing.
CREATE FUNCTION email_events_ensure_for(message_ids text[], log_uuids uuid[]) RETURNS integer
  LANGUAGE sql VOLATILE
  AS $$
    SELECT count(*) FILTER (WHERE email_events_ensure_month(month))::integer
    FROM (SELECT DISTINCT date_trunc('month', ses_ledger_uuid_time(uuid), 'UTC') AS month
          FROM email_logs
          WHERE aws_message_id = ANY (message_ids) OR uuid = ANY (log_uuids)) AS months
  $$;

-- They run with somebody else's search path, one of them with the owner's rights: pin ours, temporary objects last.
DO $$
DECLARE
  name regprocedure;
BEGIN
  FOREACH name IN ARRAY ARRAY['email_events_ensure_month(timestamptz)', 'email_events_ensure_ahead(integer)',
                              'email_events_ensure_for(text[], uuid[])']::regprocedure[] LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
  END LOOP;
END
$$;

SELECT email_events_ensure_ahead(3);

RESET ROLE;
