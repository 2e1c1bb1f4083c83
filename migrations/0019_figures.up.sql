-- Figures that are counted already: by the day on which something happened, and by what the mail was.
SET LOCAL ROLE ses_ledger_owner;

-- The month of the mail is part of the key: its events are let go by that month, and the figures of such a month stay as they
-- are. Those of all others can be counted again from the events, to the same numbers.
CREATE TABLE email_figures (
  month date NOT NULL,
  dimension text NOT NULL,
  key text NOT NULL,
  day date NOT NULL,
  sends bigint NOT NULL DEFAULT 0,
  deliveries bigint NOT NULL DEFAULT 0,
  delays bigint NOT NULL DEFAULT 0,
  bounces_permanent bigint NOT NULL DEFAULT 0,
  bounces_transient bigint NOT NULL DEFAULT 0,
  bounces_undetermined bigint NOT NULL DEFAULT 0,
  suppressed bigint NOT NULL DEFAULT 0,
  complaints bigint NOT NULL DEFAULT 0,
  rejects bigint NOT NULL DEFAULT 0,
  failures bigint NOT NULL DEFAULT 0,
  opens bigint NOT NULL DEFAULT 0,
  clicks bigint NOT NULL DEFAULT 0,
  opens_by_bots bigint NOT NULL DEFAULT 0,
  clicks_by_bots bigint NOT NULL DEFAULT 0,
  opened bigint NOT NULL DEFAULT 0,
  clicked bigint NOT NULL DEFAULT 0,
  -- Serves: adding to a line, and counting a month anew.
  PRIMARY KEY (month, dimension, key, day)
)
-- The lines of today are added to again and again, in place.
WITH (fillfactor = 70);
-- Serves: the figures of some days, whatever the months of their mails.
CREATE INDEX email_figures_day ON email_figures (dimension, day);
COMMENT ON TABLE email_figures IS 'What happened on each day, counted from events, each once: for all mails, and by template, campaign, configuration set, domain of the recipient and chosen tags';
COMMENT ON COLUMN email_figures.month IS 'First day of the month of the mails, in UTC: of their ids, or of the log row where the id tells no time';
COMMENT ON COLUMN email_figures.dimension IS 'all, template, campaign, configuration-set, domain, or tag: with the name of a tag';
COMMENT ON COLUMN email_figures.key IS 'Its name; empty where the mail has none. One of more than 200 characters is cut, with its MD5 behind';
COMMENT ON COLUMN email_figures.day IS 'Day in UTC on which it happened, as SES says';
COMMENT ON COLUMN email_figures.sends IS 'Mails that SES took (send); of several recipients it names none, so by domain these stand under the empty name';
COMMENT ON COLUMN email_figures.deliveries IS 'Recipients to whom it was delivered';
COMMENT ON COLUMN email_figures.delays IS 'Recipients for whom a delivery was put off';
COMMENT ON COLUMN email_figures.bounces_permanent IS 'Recipients from whom it came back for good, those that SES did not send to included';
COMMENT ON COLUMN email_figures.bounces_transient IS 'Recipients from whom it came back for now';
COMMENT ON COLUMN email_figures.bounces_undetermined IS 'Recipients from whom it came back, SES does not say how';
COMMENT ON COLUMN email_figures.suppressed IS 'Of the permanent bounces, those where SES did not send because of a suppression list';
COMMENT ON COLUMN email_figures.complaints IS 'Recipients who called it spam; one who is only a possible one is not counted';
COMMENT ON COLUMN email_figures.rejects IS 'Mails that SES refused to send';
COMMENT ON COLUMN email_figures.failures IS 'Mails whose template could not be rendered';
COMMENT ON COLUMN email_figures.opens IS 'Opens, each one; by domain as sends';
COMMENT ON COLUMN email_figures.clicks IS 'Clicks, each one; by domain as sends';
COMMENT ON COLUMN email_figures.opens_by_bots IS 'Of the opens, those that SES takes for a program''s';
COMMENT ON COLUMN email_figures.clicks_by_bots IS 'Of the clicks, those that SES takes for a program''s';
COMMENT ON COLUMN email_figures.opened IS 'Mails whose first open was on that day; not counted by domain';
COMMENT ON COLUMN email_figures.clicked IS 'Mails whose first click was on that day; not counted by domain';

-- One row: how far they are counted. It moves in the transaction that adds to the figures.
CREATE TABLE ses_ledger_figures (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  -- Before every event: nothing is counted yet.
  counted_until timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
  tags text[] NOT NULL DEFAULT '{}',
  updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
INSERT INTO ses_ledger_figures DEFAULT VALUES;
COMMENT ON TABLE ses_ledger_figures IS 'One row: how far the figures are counted';
COMMENT ON COLUMN ses_ledger_figures.singleton IS 'There is one row';
COMMENT ON COLUMN ses_ledger_figures.counted_until IS 'Exactly the events whose stored_at is before this are counted';
COMMENT ON COLUMN ses_ledger_figures.tags IS 'Tags that mails are counted by';
COMMENT ON COLUMN ses_ledger_figures.updated_at IS 'When somebody last looked for new events';

-- The moment at which the row is stored, not that at which its transaction began: by then the transaction holds its lock on
-- the table. So who sees no such lock at a moment, nor anybody waiting for one, has seen all rows that were stored before it.
ALTER TABLE email_events ALTER COLUMN stored_at SET DEFAULT clock_timestamp();
COMMENT ON COLUMN email_events.stored_at IS 'When the row was stored; until version 19 of the schema, when the transaction that stored it began';
-- Serves: the events that are not counted yet. Always written at its end; no update touches it.
-- Making it keeps the worker from storing for about a second per million events. Where that is too long, make it beforehand
-- as a member of ses_ledger_owner: CREATE INDEX email_events_stored_at ON ONLY email_events (stored_at), then CONCURRENTLY
-- on each partition, then ALTER INDEX email_events_stored_at ATTACH PARTITION each of them. Then nothing is left to do here.
CREATE INDEX IF NOT EXISTS email_events_stored_at ON email_events (stored_at);

ALTER TABLE email_figures ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_figures ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON email_figures TO ses_ledger_worker;
GRANT SELECT, UPDATE ON ses_ledger_figures TO ses_ledger_worker;
GRANT SELECT ON email_figures, ses_ledger_figures TO ses_ledger_operator;
CREATE POLICY worker ON email_figures TO ses_ledger_worker USING (true);
CREATE POLICY worker ON ses_ledger_figures TO ses_ledger_worker USING (true);
CREATE POLICY operator ON email_figures FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON ses_ledger_figures FOR SELECT TO ses_ledger_operator USING (true);

RESET ROLE;
