-- The roles stay: other databases of the cluster may use them, and logins may be members.
-- An administrator removes them with DROP ROLE when nothing needs them any more.
DO $$
BEGIN
  EXECUTE format('REVOKE USAGE, CREATE ON SCHEMA %I FROM ses_ledger_owner', current_schema());
  EXECUTE format('REVOKE USAGE ON SCHEMA %I FROM ses_ledger_worker, ses_ledger_sender, ses_ledger_operator', current_schema());
END
$$;
