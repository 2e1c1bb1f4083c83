-- Who had facts recomputed from stored events, and what that changed.
SET LOCAL ROLE ses_ledger_owner;

CREATE TABLE ses_ledger_rebuilds (
  uuid uuid PRIMARY KEY DEFAULT ses_ledger_uuid_v7(),
  scope text NOT NULL,
  began_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz,
  changed jsonb NOT NULL DEFAULT '{}',
  run_by text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE ses_ledger_rebuilds IS 'One row per `ses-ledger rebuild` that changed facts';
COMMENT ON COLUMN ses_ledger_rebuilds.uuid IS 'Our id of the run, UUID version 7';
COMMENT ON COLUMN ses_ledger_rebuilds.scope IS 'Which mails it looked at, and how strictly';
COMMENT ON COLUMN ses_ledger_rebuilds.began_at IS 'When it began to change something';
COMMENT ON COLUMN ses_ledger_rebuilds.ended_at IS 'When it came to its end; NULL if it did not: the same command finds what is left';
COMMENT ON COLUMN ses_ledger_rebuilds.changed IS 'What it has changed so far: mails for each fact and kind of change, with the first three as examples';
COMMENT ON COLUMN ses_ledger_rebuilds.run_by IS 'The login';

ALTER TABLE ses_ledger_rebuilds ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON ses_ledger_rebuilds TO ses_ledger_operator;
CREATE POLICY operator ON ses_ledger_rebuilds FOR SELECT TO ses_ledger_operator USING (true);

RESET ROLE;
