-- "Did she get my mail?", also while nothing has happened to it yet: the mails by what their senders wrote as recipients.
SET LOCAL ROLE ses_ledger_owner;

-- The bare addresses in what a sender wrote, in lower case, and the domain of each with its @. Display names fall away;
-- several addresses in one element are several. What is no address, or too long for an index, is left out: whatever stands
-- in the column, the row can be written. plpgsql, because a set in a function of SQL costs three times as much.
CREATE OR REPLACE FUNCTION ses_ledger_addresses(recipients text[]) RETURNS text[]
  LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
  AS $$
DECLARE
  keys text[] := '{}';
  recipient text;
  address text;
BEGIN
  FOREACH recipient IN ARRAY recipients LOOP
    -- However long it is, it costs no more than this.
    recipient := lower(left(recipient, 4000));
    -- As most are. The other way takes several times as long.
    IF recipient ~ '^[^\s<>,;"@]+@[^\s<>,;"@]+$' THEN
      IF octet_length(recipient) <= 1024 THEN
        keys := keys || recipient || ('@' || split_part(recipient, '@', 2));
      END IF;
    ELSIF strpos(recipient, '@') > 0 THEN
      FOR address IN
        -- A name that holds an @ is in quotes.
        SELECT part[1] FROM regexp_matches(regexp_replace(recipient, '"[^"]*"', ' ', 'g'), '([^\s<>,;"]+@[^\s<>,;"@]+)', 'g') AS part
        WHERE octet_length(part[1]) <= 1024
      LOOP
        keys := keys || address || ('@' || substring(address FROM '[^@]+$'));
      END LOOP;
    END IF;
  END LOOP;
  RETURN keys;
END
$$;
COMMENT ON FUNCTION ses_ledger_addresses(text[]) IS 'The bare addresses in a list of recipients, in lower case, and the domain of each with its @';

-- Serves: the mails of an address or of a domain, newest first. Facts are written without touching recipients, so those
-- updates stay off this index as off all others. No list of pending entries: it saves 3 µs of each insert, and costs every
-- question the time to read it, and now and then a sender the time to empty it.
-- Making it keeps senders from writing for some five seconds per million mails. Where that is too long, make function and
-- index beforehand, the latter CONCURRENTLY, as a member of ses_ledger_owner: then there is nothing left to do here.
CREATE INDEX IF NOT EXISTS email_logs_addresses ON email_logs USING gin (ses_ledger_addresses(recipients)) WITH (fastupdate = off);

RESET ROLE;
