-- What each worker says of itself every ten seconds, so that whoever asks "is it keeping up?" needs only the database.
-- Small and bounded: a row per worker process, a row per worker and minute (both for two days), a row per kind of event.
SET LOCAL ROLE ses_ledger_owner;

-- No index on seen_at: every beat changes it, and would then have to write the index as well. There are few rows to read.
CREATE TABLE ses_ledger_workers (
  -- Serves: the beat of the worker.
  id uuid PRIMARY KEY,
  name text NOT NULL,
  version text NOT NULL,
  runtime text NOT NULL CHECK (runtime IN ('ecs', 'lambda', 'other')),
  queues text[] NOT NULL,
  started_at timestamptz NOT NULL,
  seen_at timestamptz NOT NULL,
  stopped_at timestamptz,
  received bigint NOT NULL,
  stored bigint NOT NULL,
  ignored bigint NOT NULL,
  rejected bigint NOT NULL,
  released bigint NOT NULL,
  in_hand bigint NOT NULL,
  messages_drift bigint NOT NULL,
  decoded bigint NOT NULL,
  inserted bigint NOT NULL,
  duplicate bigint NOT NULL,
  orphaned bigint NOT NULL,
  quarantined bigint NOT NULL,
  events_drift bigint NOT NULL,
  connections integer NOT NULL,
  connections_most integer NOT NULL,
  retention_payload interval
) WITH (fillfactor = 50);
COMMENT ON TABLE ses_ledger_workers IS 'Worker processes, those that are gone for two days at most; counts since their start';
COMMENT ON COLUMN ses_ledger_workers.id IS 'Made when the process starts, UUID version 7';
COMMENT ON COLUMN ses_ledger_workers.name IS 'Its host, or the name of the Lambda function';
COMMENT ON COLUMN ses_ledger_workers.version IS 'Version of the binary';
COMMENT ON COLUMN ses_ledger_workers.runtime IS 'ecs, lambda or other';
COMMENT ON COLUMN ses_ledger_workers.queues IS 'The queues that it receives from, by their ARN';
COMMENT ON COLUMN ses_ledger_workers.started_at IS 'When the process started';
COMMENT ON COLUMN ses_ledger_workers.seen_at IS 'Its last beat, by the clock of the database';
COMMENT ON COLUMN ses_ledger_workers.stopped_at IS 'When it said goodbye; null while it runs, and if it was killed';
COMMENT ON COLUMN ses_ledger_workers.received IS 'Messages received';
COMMENT ON COLUMN ses_ledger_workers.stored IS 'of which every event is stored';
COMMENT ON COLUMN ses_ledger_workers.ignored IS 'that hold nothing but known noise';
COMMENT ON COLUMN ses_ledger_workers.rejected IS 'of which something went to quarantine';
COMMENT ON COLUMN ses_ledger_workers.released IS 'given back to the queue';
COMMENT ON COLUMN ses_ledger_workers.in_hand IS 'that have no outcome yet';
COMMENT ON COLUMN ses_ledger_workers.messages_drift IS 'received less all of these: zero unless the worker has a fault';
COMMENT ON COLUMN ses_ledger_workers.decoded IS 'Events decoded from stored batches';
COMMENT ON COLUMN ses_ledger_workers.inserted IS 'that became a new row';
COMMENT ON COLUMN ses_ledger_workers.duplicate IS 'whose row was there already';
COMMENT ON COLUMN ses_ledger_workers.orphaned IS 'parked because their mail was not known yet';
COMMENT ON COLUMN ses_ledger_workers.quarantined IS 'that the database refused';
COMMENT ON COLUMN ses_ledger_workers.events_drift IS 'decoded less all of these: zero unless the worker has a fault';
COMMENT ON COLUMN ses_ledger_workers.connections IS 'Connections that it holds to the database';
COMMENT ON COLUMN ses_ledger_workers.connections_most IS 'and how many it may hold';
COMMENT ON COLUMN ses_ledger_workers.retention_payload IS 'Its RETENTION_PAYLOAD; null: payloads are kept';

-- Written again with every beat of the minute, each time whole: a beat that comes twice changes nothing.
CREATE TABLE ses_ledger_minutes (
  minute timestamptz NOT NULL,
  worker uuid NOT NULL,
  received bigint NOT NULL,
  redelivered bigint NOT NULL,
  stored bigint NOT NULL,
  ignored bigint NOT NULL,
  rejected bigint NOT NULL,
  released bigint NOT NULL,
  deleted bigint NOT NULL,
  inserted bigint NOT NULL,
  duplicate bigint NOT NULL,
  orphaned bigint NOT NULL,
  quarantined bigint NOT NULL,
  receives_with_messages bigint NOT NULL,
  receives_empty bigint NOT NULL,
  receives_failed bigint NOT NULL,
  delete_requests bigint NOT NULL,
  visibility_requests bigint NOT NULL,
  lags bigint[] NOT NULL,
  queues jsonb NOT NULL,
  -- Serves: the beat, all questions (they name a time), and letting go of what is too old.
  PRIMARY KEY (minute, worker)
) WITH (fillfactor = 50);
COMMENT ON TABLE ses_ledger_minutes IS 'What each worker did in each minute of the last two days';
COMMENT ON COLUMN ses_ledger_minutes.minute IS 'Its first moment';
COMMENT ON COLUMN ses_ledger_minutes.worker IS 'See ses_ledger_workers.id';
COMMENT ON COLUMN ses_ledger_minutes.received IS 'Messages received';
COMMENT ON COLUMN ses_ledger_minutes.redelivered IS 'of them, those that had been handed out before';
COMMENT ON COLUMN ses_ledger_minutes.stored IS 'Messages of which every event is stored';
COMMENT ON COLUMN ses_ledger_minutes.ignored IS 'Messages that hold nothing but known noise';
COMMENT ON COLUMN ses_ledger_minutes.rejected IS 'Messages of which something went to quarantine';
COMMENT ON COLUMN ses_ledger_minutes.released IS 'Messages given back to the queue';
COMMENT ON COLUMN ses_ledger_minutes.deleted IS 'Messages deleted from the queue';
COMMENT ON COLUMN ses_ledger_minutes.inserted IS 'Events that became a new row';
COMMENT ON COLUMN ses_ledger_minutes.duplicate IS 'Events whose row was there already';
COMMENT ON COLUMN ses_ledger_minutes.orphaned IS 'Events parked because their mail was not known yet';
COMMENT ON COLUMN ses_ledger_minutes.quarantined IS 'Events that the database refused';
COMMENT ON COLUMN ses_ledger_minutes.receives_with_messages IS 'Receives that brought messages; none on Lambda, which receives by itself';
COMMENT ON COLUMN ses_ledger_minutes.receives_empty IS 'Receives that brought none';
COMMENT ON COLUMN ses_ledger_minutes.receives_failed IS 'Receives that failed';
COMMENT ON COLUMN ses_ledger_minutes.delete_requests IS 'Requests to delete, each for up to ten messages';
COMMENT ON COLUMN ses_ledger_minutes.visibility_requests IS 'Requests to hide messages or give them back, each for up to ten';
COMMENT ON COLUMN ses_ledger_minutes.lags IS 'How many inserted events were how old when they were committed: up to 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30 s, 1, 2, 5, 10, 30 min, 1, 6, 24 h, older';
COMMENT ON COLUMN ses_ledger_minutes.queues IS 'By ARN: messages received and deleted, and the age in ms of the oldest when it was received';

CREATE TABLE ses_ledger_kinds (
  -- Serves: the beat, in the order of the key, so that no two workers wait for each other.
  event_type text PRIMARY KEY,
  last_occurred_at timestamptz,
  last_stored_at timestamptz,
  since timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
COMMENT ON TABLE ses_ledger_kinds IS 'The last event of each kind, those included whose mail is not known yet';
COMMENT ON COLUMN ses_ledger_kinds.event_type IS 'See email_events';
COMMENT ON COLUMN ses_ledger_kinds.last_occurred_at IS 'The latest time at which one of them happened';
COMMENT ON COLUMN ses_ledger_kinds.last_stored_at IS 'and at which one was stored';
COMMENT ON COLUMN ses_ledger_kinds.since IS 'Of what was stored before, only what belongs to mails of the 15 days before is known';

-- What is known already, of the mails of the last 15 days: they lie together, whatever the size of the table.
INSERT INTO ses_ledger_kinds (event_type, last_occurred_at, last_stored_at)
SELECT event_type, max(occurred_at), max(stored_at)
FROM email_events
WHERE email_log_uuid >= ses_ledger_uuid_floor(now() - interval '15 days') AND email_log_uuid < ses_ledger_uuid_floor(now() + interval '1 day')
GROUP BY event_type;
INSERT INTO ses_ledger_kinds (event_type)
SELECT unnest(ARRAY['send', 'delivery', 'bounce', 'complaint', 'reject', 'open', 'click', 'rendering_failure', 'delivery_delay',
                    'subscription'])
ON CONFLICT DO NOTHING;

ALTER TABLE ses_ledger_workers ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_minutes ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_kinds ENABLE ROW LEVEL SECURITY;

-- The worker writes them, and removes only what is too old to matter.
GRANT SELECT, INSERT, UPDATE, DELETE ON ses_ledger_workers, ses_ledger_minutes TO ses_ledger_worker;
GRANT SELECT, INSERT, UPDATE ON ses_ledger_kinds TO ses_ledger_worker;
CREATE POLICY worker_reads ON ses_ledger_workers FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY worker_adds ON ses_ledger_workers FOR INSERT TO ses_ledger_worker WITH CHECK (true);
CREATE POLICY worker_renews ON ses_ledger_workers FOR UPDATE TO ses_ledger_worker USING (true);
CREATE POLICY worker_forgets ON ses_ledger_workers FOR DELETE TO ses_ledger_worker USING (seen_at < now() - interval '2 days');
CREATE POLICY worker_reads ON ses_ledger_minutes FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY worker_adds ON ses_ledger_minutes FOR INSERT TO ses_ledger_worker WITH CHECK (true);
CREATE POLICY worker_renews ON ses_ledger_minutes FOR UPDATE TO ses_ledger_worker USING (true);
CREATE POLICY worker_forgets ON ses_ledger_minutes FOR DELETE TO ses_ledger_worker USING (minute < now() - interval '2 days');
CREATE POLICY worker ON ses_ledger_kinds TO ses_ledger_worker USING (true);

GRANT SELECT ON ses_ledger_workers, ses_ledger_minutes, ses_ledger_kinds TO ses_ledger_operator;
CREATE POLICY operator ON ses_ledger_workers FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON ses_ledger_minutes FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON ses_ledger_kinds FOR SELECT TO ses_ledger_operator USING (true);

RESET ROLE;
