-- What Citus refuses of this schema, and of the statement that stores: see infra/SCALING.md. For a coordinator with a database of
-- its own, whose role ses_ledger_owner may log in, after `ses-ledger migrate up`; leaves nothing behind. From the repository's root:
--   psql --file=tests/bench/citus.sql "$COORDINATOR_URL"
\set QUIET 1
\set VERBOSITY terse
SET client_min_messages = error;
SELECT citus_version();

\echo 'email_logs as it is'
SELECT create_distributed_table('email_logs', 'uuid');
\echo 'email_logs, triggers allowed'
SET citus.enable_unsafe_triggers = on;
SELECT create_distributed_table('email_logs', 'uuid');
\echo 'orphaned_events by the id of SES'
SELECT create_distributed_table('orphaned_events', 'aws_message_id');

BEGIN;
\echo 'without the one unique index that does not hold the uuid'
DROP INDEX email_logs_aws_message_id;
SELECT create_distributed_table('email_logs', 'uuid');
SELECT create_distributed_table('email_events', 'email_log_uuid', colocate_with => 'email_logs');
SELECT create_reference_table('orphaned_events');
SELECT table_name, citus_table_type, distribution_column, shard_count FROM citus_tables ORDER BY table_name::text;

\set store `cat src/postgres/from_batch.sql src/postgres/store.sql src/postgres/batch_verdicts.sql`
SELECT format('EXECUTE store (%s)', string_agg('''{}''', ', ')) AS of_nothing FROM generate_series(1, 29) \gset
PREPARE store AS :store;
\echo 'the statement that stores'
SAVEPOINT before;
:of_nothing;
ROLLBACK TO before;
\echo 'what its look-up of each mail becomes'
EXPLAIN (COSTS OFF) WITH u AS MATERIALIZED (SELECT unnest('{a,b}'::text[]) AS aws_message_id)
  SELECT l.uuid FROM u LEFT JOIN email_logs AS l USING (aws_message_id);
ROLLBACK;
