-- A month in days: to be run ahead of the month, by a login that is a member of ses_ledger_owner. Name the month here.
--   psql --single-transaction --file=infra/finer-month.sql "$DATABASE_URL"
-- The worker then leaves this month as it is, and `ses-ledger retention run` lets go of it as a whole.
SET ROLE ses_ledger_owner;
DO $$
DECLARE
  first CONSTANT timestamptz := '2027-06-01 00:00:00+00';
  next CONSTANT timestamptz := date_trunc('month', first + interval '40 days', 'UTC');
  name CONSTANT text := to_char(first AT TIME ZONE 'UTC', '"email_events_y"YYYY"m"MM');
  day timestamptz;
BEGIN
  EXECUTE format('CREATE TABLE %I (LIKE email_events INCLUDING ALL) PARTITION BY RANGE (email_log_uuid)', name);
  FOR day IN SELECT generate_series(first, next - interval '24 hours', interval '24 hours') LOOP
    EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                   name || to_char(day AT TIME ZONE 'UTC', '"d"DD'), name,
                   ses_ledger_uuid_floor(day), ses_ledger_uuid_floor(day + interval '24 hours'));
  END LOOP;
  EXECUTE format('ALTER TABLE email_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                 name, ses_ledger_uuid_floor(first), ses_ledger_uuid_floor(next));
END
$$;
RESET ROLE;
