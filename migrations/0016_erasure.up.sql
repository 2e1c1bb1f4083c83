-- A person can be erased: what names her is replaced by a keyed digest. The rows stay, so nothing is counted otherwise, and
-- what SES reports about her again is still known, and does not bring her back.
SET LOCAL ROLE ses_ledger_owner;

-- Two secrets of 64 bytes, a whole block of SHA-256 each: the digest is the NMAC of the address. Without them nobody can try
-- addresses out; who deletes them makes the digests anonymous, and loses the memory of who was erased.
CREATE TABLE ses_ledger_erasure_key (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  inner_key bytea NOT NULL CHECK (length(inner_key) = 64),
  outer_key bytea NOT NULL CHECK (length(outer_key) = 64)
);
INSERT INTO ses_ledger_erasure_key (inner_key, outer_key)
  SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
           || sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
         sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
           || sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
COMMENT ON TABLE ses_ledger_erasure_key IS 'One row: the secrets of the digests of erased addresses. Nobody but the owner reads it';
COMMENT ON COLUMN ses_ledger_erasure_key.singleton IS 'There is one row';
COMMENT ON COLUMN ses_ledger_erasure_key.inner_key IS '64 random bytes';
COMMENT ON COLUMN ses_ledger_erasure_key.outer_key IS '64 random bytes';

-- What stands in the place of an erased address. As the owner, so that who stores can ask and cannot read the secrets.
CREATE FUNCTION ses_ledger_erased_name(address text) RETURNS text
  LANGUAGE sql STABLE STRICT SECURITY DEFINER
  AS $$
    SELECT CASE WHEN address = '' OR address LIKE 'erased:%' THEN address
           ELSE 'erased:' || encode(substring(sha256(k.outer_key || sha256(k.inner_key || convert_to(address, 'UTF8'))) FROM 1 FOR 16), 'hex') END
    FROM ses_ledger_erasure_key AS k WHERE k.singleton
  $$;

-- In which mails somebody was erased. Looked at for every event, by its index; it is small, and mostly empty.
CREATE TABLE ses_ledger_erased (
  mail text NOT NULL,
  name text NOT NULL CHECK (name LIKE 'erased:%'),
  -- Serves: the look-up of each event's mail.
  PRIMARY KEY (mail, name)
);
-- Serves: the mails of one person.
CREATE INDEX ses_ledger_erased_name ON ses_ledger_erased (name);
COMMENT ON TABLE ses_ledger_erased IS 'Mails in which somebody was erased';
COMMENT ON COLUMN ses_ledger_erased.mail IS 'The id of SES, or the log''s own';
COMMENT ON COLUMN ses_ledger_erased.name IS 'What stands in the place of the address';

CREATE TABLE ses_ledger_erasures (
  uuid uuid PRIMARY KEY DEFAULT ses_ledger_uuid_v7(),
  name text NOT NULL,
  erased_by text NOT NULL DEFAULT session_user,
  began_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz,
  stage text NOT NULL DEFAULT 'events',
  after_log uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  after_event uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
  counts jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE ses_ledger_erasures IS 'Receipts of erasures. They hold no address';
COMMENT ON COLUMN ses_ledger_erasures.uuid IS 'Our id of the erasure, UUID version 7';
COMMENT ON COLUMN ses_ledger_erasures.name IS 'What stands in the place of the address, in lower case';
COMMENT ON COLUMN ses_ledger_erasures.erased_by IS 'The login';
COMMENT ON COLUMN ses_ledger_erasures.began_at IS 'When it began';
COMMENT ON COLUMN ses_ledger_erasures.ended_at IS 'When it came to its end; NULL if it did not: the same command goes on with it';
COMMENT ON COLUMN ses_ledger_erasures.stage IS 'The table it is at';
COMMENT ON COLUMN ses_ledger_erasures.after_log IS 'It goes on after this mail, orphan or body';
COMMENT ON COLUMN ses_ledger_erasures.after_event IS 'and after this event of it';
COMMENT ON COLUMN ses_ledger_erasures.counts IS 'Rows that were changed, by table';

DO $$
BEGIN
  EXECUTE format('ALTER FUNCTION ses_ledger_erased_name(text) SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE EXECUTE ON FUNCTION ses_ledger_erased_name(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ses_ledger_erased_name(text) TO ses_ledger_worker;
ALTER TABLE ses_ledger_erasure_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_erased ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_erasures ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON ses_ledger_erased TO ses_ledger_worker;
GRANT SELECT ON ses_ledger_erasures TO ses_ledger_operator;
CREATE POLICY worker ON ses_ledger_erased FOR SELECT TO ses_ledger_worker USING (true);
CREATE POLICY operator ON ses_ledger_erasures FOR SELECT TO ses_ledger_operator USING (true);

RESET ROLE;
