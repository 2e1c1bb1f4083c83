-- Mails and events that are brought in from somebody's existing tables: how far that has come, and what became of each row.
SET LOCAL ROLE ses_ledger_owner;

-- One row per table and step. It moves in the transaction that stores the rows, so it is true whenever somebody pulls the plug.
CREATE TABLE ses_ledger_adoptions (
  source text NOT NULL,
  step text NOT NULL CHECK (step IN ('logs', 'events', 'facts')),
  position text[],
  by_time boolean NOT NULL DEFAULT false,
  counts jsonb NOT NULL DEFAULT '{}',
  whole_seconds_until uuid,
  started_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  PRIMARY KEY (source, step)
);
-- Serves: up to which mail is there an adopted event of a whole second? Every statement of the worker asks.
CREATE INDEX ses_ledger_adoptions_whole_seconds ON ses_ledger_adoptions (whole_seconds_until) WHERE whole_seconds_until IS NOT NULL;
COMMENT ON TABLE ses_ledger_adoptions IS 'How far the adoption of each existing table has come';
COMMENT ON COLUMN ses_ledger_adoptions.source IS 'The table, as its events name it behind adopted:';
COMMENT ON COLUMN ses_ledger_adoptions.step IS 'logs: rows become mails; events: rows become events; facts: what only the log rows say becomes events';
COMMENT ON COLUMN ses_ledger_adoptions.position IS 'The run goes on after the row with this key; NULL at its beginning';
COMMENT ON COLUMN ses_ledger_adoptions.by_time IS 'The rows are read in the order of their times, because their ids tell none';
COMMENT ON COLUMN ses_ledger_adoptions.counts IS 'What became of the rows of this run so far';
COMMENT ON COLUMN ses_ledger_adoptions.whole_seconds_until IS 'The greatest mail with an adopted open or click of a whole second: up to it, the worker looks whether it knows one by its second';
COMMENT ON COLUMN ses_ledger_adoptions.started_at IS 'When this run began';
COMMENT ON COLUMN ses_ledger_adoptions.updated_at IS 'When it last moved';
COMMENT ON COLUMN ses_ledger_adoptions.finished_at IS 'When it came to its end';

-- What became of each log row. It outlives the mail: one that was erased here does not come back with the next run.
CREATE TABLE ses_ledger_adopted_logs (
  source text NOT NULL,
  source_id text NOT NULL,
  log_uuid uuid NOT NULL,
  outcome text NOT NULL CHECK (outcome IN ('adopted', 'collapsed', 'there')),
  -- Serves: the mail of an event that names its log row.
  PRIMARY KEY (source, source_id)
);
-- Serves: was the mail that holds an id adopted from this table, or is it our own?
CREATE INDEX ses_ledger_adopted_logs_log_uuid ON ses_ledger_adopted_logs (log_uuid);
COMMENT ON TABLE ses_ledger_adopted_logs IS 'The mail that each adopted log row became, or was collapsed into';
COMMENT ON COLUMN ses_ledger_adopted_logs.source IS 'The table that it comes from';
COMMENT ON COLUMN ses_ledger_adopted_logs.source_id IS 'Its key there';
COMMENT ON COLUMN ses_ledger_adopted_logs.log_uuid IS 'The mail here';
COMMENT ON COLUMN ses_ledger_adopted_logs.outcome IS 'adopted: it became this mail; collapsed: an earlier row of the table has the same SES id; there: the mail was here already';

CREATE TABLE ses_ledger_unmatched (
  source text NOT NULL,
  step text NOT NULL,
  source_id text NOT NULL,
  reason text NOT NULL,
  -- Serves: the list, a table at a time.
  PRIMARY KEY (source, step, source_id)
);
COMMENT ON TABLE ses_ledger_unmatched IS 'Rows that the last run of an adoption could not take';
COMMENT ON COLUMN ses_ledger_unmatched.source IS 'The table that it is in';
COMMENT ON COLUMN ses_ledger_unmatched.step IS 'logs or events';
COMMENT ON COLUMN ses_ledger_unmatched.source_id IS 'Its key there';
COMMENT ON COLUMN ses_ledger_unmatched.reason IS 'Why, for example no_log';

ALTER TABLE ses_ledger_adoptions ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_adopted_logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_unmatched ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON ses_ledger_adoptions TO ses_ledger_worker;
GRANT SELECT ON ses_ledger_adoptions, ses_ledger_adopted_logs, ses_ledger_unmatched TO ses_ledger_operator;
CREATE POLICY worker ON ses_ledger_adoptions FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY operator ON ses_ledger_adoptions FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON ses_ledger_adopted_logs FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON ses_ledger_unmatched FOR SELECT TO ses_ledger_operator USING (true);

RESET ROLE;
