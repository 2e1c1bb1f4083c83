-- What the optional index of recipients looks at: `ses-ledger migrate --with search` builds it, `--without search` drops it.
SET LOCAL ROLE ses_ledger_owner;

-- The list as one text, names and all, as the sender wrote it. The function of PostgreSQL that does this is not declared
-- immutable, because the elements of an array may be anything; of texts it always makes the same.
CREATE FUNCTION ses_ledger_written_to(recipients text[]) RETURNS text
  LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
  AS $$
BEGIN
  RETURN array_to_string(recipients, ' ');
END
$$;
COMMENT ON FUNCTION ses_ledger_written_to(text[]) IS 'A list of recipients as one text, to look for a part of an address';

RESET ROLE;
