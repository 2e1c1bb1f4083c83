-- Four group roles without login. Grant them to the logins of a deployment:
--   GRANT ses_ledger_worker TO my_worker_login;
-- Roles belong to the whole cluster, so they may be there already.
DO $$
DECLARE
  wanted text;
  help text := 'migrate as a login with CREATEROLE, or have an administrator run: CREATE ROLE ses_ledger_owner; '
               'CREATE ROLE ses_ledger_worker; CREATE ROLE ses_ledger_sender; CREATE ROLE ses_ledger_operator; '
               '(those that are not there yet) GRANT ses_ledger_owner TO ' || quote_ident(current_user);
BEGIN
  FOREACH wanted IN ARRAY ARRAY[
    'ses_ledger_owner',     -- owns every object; the login that migrates is a member
    'ses_ledger_worker',    -- what `ses-ledger run` needs, and nothing that drops or alters
    'ses_ledger_sender',    -- the application: writes its log rows, never the facts
    'ses_ledger_operator'   -- reads
  ] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
      EXCEPTION
        WHEN duplicate_object OR unique_violation THEN NULL;  -- another migration was faster
        WHEN insufficient_privilege THEN
          RAISE insufficient_privilege USING MESSAGE = format('cannot create the role %s', wanted), HINT = help;
      END;
    END IF;
  END LOOP;
  -- Tried rather than asked: from PostgreSQL 16 on, who makes a role is a member of it without being able to become it.
  BEGIN
    SET LOCAL ROLE ses_ledger_owner;
    RESET ROLE;
  EXCEPTION
    WHEN insufficient_privilege THEN
      BEGIN
        EXECUTE format('GRANT ses_ledger_owner TO %I', current_user);
      EXCEPTION
        WHEN insufficient_privilege THEN
          RAISE insufficient_privilege USING MESSAGE = 'cannot become the role ses_ledger_owner', HINT = help;
      END;
  END;
  EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO ses_ledger_owner', current_schema());
  EXECUTE format('GRANT USAGE ON SCHEMA %I TO ses_ledger_worker, ses_ledger_sender, ses_ledger_operator', current_schema());
END
$$;
