-- Bodies that could not be understood, and events that the database refused. One row per distinct body.
SET LOCAL ROLE ses_ledger_owner;

CREATE TABLE quarantined_messages (
  -- Serves: the listing, newest first.
  uuid uuid PRIMARY KEY,
  body bytea NOT NULL,
  body_digest bytea NOT NULL,
  stage text NOT NULL CHECK (stage IN ('decode', 'store')),
  reason text NOT NULL,
  failed_at text NOT NULL,
  fingerprint text NOT NULL,
  queue text NOT NULL,
  sqs_message_id text NOT NULL,
  receive_count integer NOT NULL,
  times_seen integer NOT NULL DEFAULT 1,
  first_seen_at timestamptz NOT NULL DEFAULT now(),
  last_seen_at timestamptz NOT NULL DEFAULT now(),
  replay_count integer NOT NULL DEFAULT 0,
  last_replayed_at timestamptz,
  last_replay_outcome text
);

-- Serves: seeing the same body again is no second row.
CREATE UNIQUE INDEX quarantined_messages_body ON quarantined_messages (body_digest);
-- Serves: the groups of quarantine_failures, and the bodies of one group.
CREATE INDEX quarantined_messages_fingerprint ON quarantined_messages (fingerprint, uuid);

COMMENT ON TABLE quarantined_messages IS 'Message bodies that could not be understood or stored, with the reason';
COMMENT ON COLUMN quarantined_messages.uuid IS 'Our id, UUID version 7 of the moment when it was first seen';
COMMENT ON COLUMN quarantined_messages.body IS 'The bytes as they were received; of a body with several events only the part that failed';
COMMENT ON COLUMN quarantined_messages.body_digest IS 'SHA-256 of the body';
COMMENT ON COLUMN quarantined_messages.stage IS 'decode: not understood; store: refused by the database';
COMMENT ON COLUMN quarantined_messages.reason IS 'Reason code, for example invalid_json, no_message_id, sqlstate_54000';
COMMENT ON COLUMN quarantined_messages.failed_at IS 'Where in the body it failed, without content';
COMMENT ON COLUMN quarantined_messages.fingerprint IS 'Equal for bodies that failed in the same way';
COMMENT ON COLUMN quarantined_messages.queue IS 'Queue that it came from';
COMMENT ON COLUMN quarantined_messages.sqs_message_id IS 'SQS message that last brought it';
COMMENT ON COLUMN quarantined_messages.receive_count IS 'How often SQS had handed out that message';
COMMENT ON COLUMN quarantined_messages.times_seen IS 'How often the body arrived';
COMMENT ON COLUMN quarantined_messages.first_seen_at IS 'When it first arrived';
COMMENT ON COLUMN quarantined_messages.last_seen_at IS 'When it last arrived';
COMMENT ON COLUMN quarantined_messages.replay_count IS 'How often it was sent through the pipeline again';
COMMENT ON COLUMN quarantined_messages.last_replayed_at IS 'When that was last done';
COMMENT ON COLUMN quarantined_messages.last_replay_outcome IS 'What came of it';

RESET ROLE;
