-- "May I write to her?", asked before each mail: who bounced for good or complained, by the address, at any size of the ledger.
SET LOCAL ROLE ses_ledger_owner;

-- A table of its own, not an index over email_events: there a transient and a permanent bounce of one recipient share a row, and
-- which of them it tells depends on what came first; an event of a month that was let go has no row at all; and an index is
-- asked once for each month. Here a report is one row, however it came and however often: the key is what SES said, not where
-- it is stored. So it does not matter what comes first, and nothing has to be saved when a month goes.
CREATE TABLE ses_ledger_suppressions (
  address text NOT NULL CHECK (address <> ''),
  candidate boolean NOT NULL,
  occurred_at timestamptz NOT NULL,
  cause text NOT NULL CHECK (cause IN ('bounce', 'complaint', 'ses_list')),
  subtype text,
  smtp_status text,
  email_log_uuid uuid,
  event_uuid uuid,
  -- Serves: the question of the sender, the newest report first; and hearing of the same again is no second row.
  PRIMARY KEY (address, candidate, occurred_at, cause)
);
-- Serves: the list, newest first.
CREATE INDEX ses_ledger_suppressions_newest ON ses_ledger_suppressions (occurred_at, address);
COMMENT ON TABLE ses_ledger_suppressions IS 'Each report that an address is not to be written to. Outlives the events';
COMMENT ON COLUMN ses_ledger_suppressions.address IS 'Bare and in lower case; the digest of that once she was erased';
COMMENT ON COLUMN ses_ledger_suppressions.candidate IS 'She is only one of several whom SES names as possible: held against nobody';
COMMENT ON COLUMN ses_ledger_suppressions.occurred_at IS 'When it happened, as SES says';
COMMENT ON COLUMN ses_ledger_suppressions.cause IS 'bounce: for good; complaint; ses_list: SES did not send, because the address is on a list';
COMMENT ON COLUMN ses_ledger_suppressions.subtype IS 'For example NoEmail, abuse, OnAccountSuppressionList';
COMMENT ON COLUMN ses_ledger_suppressions.smtp_status IS 'Enhanced status code of the recipient''s server, for example 5.1.1';
COMMENT ON COLUMN ses_ledger_suppressions.email_log_uuid IS 'The mail, which may be gone by now; NULL if it is not known';
COMMENT ON COLUMN ses_ledger_suppressions.event_uuid IS 'Its row in email_events, which may be gone by now; NULL if it got none of its own';

-- Taking an address off is a row as well. Nobody but the owner can change it.
CREATE TABLE ses_ledger_suppression_removals (
  uuid uuid PRIMARY KEY DEFAULT ses_ledger_uuid_v7(),
  address text NOT NULL CHECK (address <> ''),
  reason text NOT NULL CHECK (reason <> ''),
  removed_by text NOT NULL DEFAULT session_user,
  removed_at timestamptz NOT NULL DEFAULT now(),
  covers_until timestamptz NOT NULL
);
-- Serves: up to when do the reports about an address not count?
CREATE INDEX ses_ledger_suppression_removals_address ON ses_ledger_suppression_removals (address, covers_until);
COMMENT ON TABLE ses_ledger_suppression_removals IS 'Addresses that somebody allowed to be written to again';
COMMENT ON COLUMN ses_ledger_suppression_removals.uuid IS 'Our id of the removal, UUID version 7';
COMMENT ON COLUMN ses_ledger_suppression_removals.address IS 'See ses_ledger_suppressions';
COMMENT ON COLUMN ses_ledger_suppression_removals.reason IS 'Why, in the words of who did it';
COMMENT ON COLUMN ses_ledger_suppression_removals.removed_by IS 'The login';
COMMENT ON COLUMN ses_ledger_suppression_removals.removed_at IS 'When';
COMMENT ON COLUMN ses_ledger_suppression_removals.covers_until IS
  'What happened up to then counts no more, whenever it arrives: removed_at, or later if a report was dated later';

-- What a report says against its recipient, if anything. The rules of migration 2 decide; of what SES did not send, only what
-- holds for the address: who has unsubscribed from one contact list may still want her password.
CREATE FUNCTION ses_ledger_suppression_cause(event_type text, bounce_type text, bounce_subtype text,
                                             complaint_type text, complaint_subtype text) RETURNS text
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE
    WHEN ses_ledger_bounce_class_of(event_type, bounce_type, complaint_subtype) = 'permanent' THEN
      CASE WHEN event_type = 'complaint' OR lower(bounce_subtype) LIKE '%suppress%' THEN 'ses_list'
           WHEN lower(bounce_subtype) = 'unsubscribedrecipient' THEN NULL
           ELSE 'bounce' END
    WHEN ses_ledger_fact(event_type, complaint_type, complaint_subtype) = 'complained' THEN 'complaint'
  END;

-- The address by which it is known, of any spelling: `Ana <ANA@Example.org>` is ana@example.org. NULL if nothing is left.
CREATE FUNCTION ses_ledger_suppression_key(address text) RETURNS text
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE
    WHEN address ~ '^[^\s<>;[:cntrl:]]+$' THEN lower(address)
    ELSE nullif(lower(btrim(regexp_replace(coalesce(substring(address FROM '<([^<>]*)>[^<>]*$'), address),
                                           '^\s*rfc822\s*;|[[:cntrl:]]', '', 'gi'))), '')
  END;

-- Whatever stores an event, stores what it says against its recipient: also a worker of an older version, or somebody's hand.
-- The two kinds that this does not see, the worker's statement adds (store.sql): an event that got no row of its own, and one
-- of a person who was erased, whose row does not say her address any more.
CREATE FUNCTION ses_ledger_note_suppression() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER
  AS $$
#variable_conflict use_column
DECLARE
  cause CONSTANT text := ses_ledger_suppression_cause(NEW.event_type, NEW.bounce_type, NEW.bounce_subtype, NEW.complaint_type,
                                                      NEW.complaint_subtype);
  key CONSTANT text := ses_ledger_suppression_key(NEW.recipient);
BEGIN
  IF cause IS NULL OR key IS NULL THEN
    RETURN NULL;
  END IF;
  INSERT INTO ses_ledger_suppressions AS s
    (address, candidate, occurred_at, cause, subtype, smtp_status, email_log_uuid, event_uuid)
  VALUES (key, NEW.candidate, NEW.occurred_at, cause,
          coalesce(NEW.bounce_subtype, NEW.complaint_subtype, NEW.complaint_type), NEW.smtp_status, NEW.email_log_uuid, NEW.uuid)
  -- One moment, two mails: the smaller id stays, whatever comes first.
  ON CONFLICT (address, candidate, occurred_at, cause) DO UPDATE SET
    subtype = excluded.subtype, smtp_status = excluded.smtp_status,
    email_log_uuid = excluded.email_log_uuid, event_uuid = excluded.event_uuid
  WHERE excluded.email_log_uuid < coalesce(s.email_log_uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
     OR excluded.email_log_uuid = s.email_log_uuid AND s.event_uuid IS NULL;
  RETURN NULL;
END
$$;

-- The answer to a sender, for as many addresses as it likes: a row for each that is not to be written to, none for the others.
-- As the owner, so that a sender needs no right to read anything. The newest report decides what is told. With `perhaps` also
-- those whom SES only names as possible, where nothing is known for certain. Planned once in a session: planning takes ten
-- times as long as asking.
CREATE FUNCTION ses_ledger_suppressed(whom text[], perhaps boolean DEFAULT false)
  RETURNS TABLE (address text, cause text, occurred_at timestamptz, certain boolean, reports integer, subtype text,
                 smtp_status text, email_log_uuid uuid, event_uuid uuid)
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan
  AS $$
#variable_conflict use_column
DECLARE
  -- The digest is asked for only where anybody was erased.
  anybody CONSTANT boolean := EXISTS (SELECT FROM ses_ledger_erasures);
BEGIN
  RETURN QUERY
    SELECT asked.address, found.cause, found.occurred_at, NOT found.candidate,
           (SELECT count(*)::integer FROM (
              SELECT FROM ses_ledger_suppressions AS s
              WHERE s.address = ANY (known.names) AND s.candidate = found.candidate AND s.occurred_at > removed.until
              LIMIT 1000) AS told),
           found.subtype, found.smtp_status, found.email_log_uuid, found.event_uuid
    FROM unnest(whom) WITH ORDINALITY AS asked (address, n)
    CROSS JOIN LATERAL ses_ledger_suppression_key(asked.address) AS whole
    -- Somebody may have handed over a whole list as one address: then all of it is looked for.
    CROSS JOIN LATERAL (
      SELECT whole AS key WHERE whole IS NOT NULL
      UNION SELECT part FROM unnest(CASE WHEN asked.address ~ '[,;]' THEN ses_ledger_addresses(ARRAY[asked.address]) END) AS part
      WHERE part NOT LIKE '@%'
    ) AS keys
    CROSS JOIN LATERAL (SELECT CASE WHEN anybody THEN ARRAY[key, ses_ledger_erased_name(key)] ELSE ARRAY[key] END AS names) AS known
    CROSS JOIN LATERAL (
      SELECT coalesce(max(r.covers_until), '-infinity') AS until
      FROM ses_ledger_suppression_removals AS r WHERE r.address = ANY (known.names)
    ) AS removed
    CROSS JOIN LATERAL (
      SELECT newest.* FROM (VALUES (false), (true)) AS kinds (candidate), unnest(known.names) AS name, LATERAL (
        SELECT * FROM ses_ledger_suppressions AS s
        WHERE s.address = name AND s.candidate = kinds.candidate AND s.occurred_at > removed.until
        ORDER BY s.occurred_at DESC, s.cause DESC LIMIT 1
      ) AS newest
      WHERE perhaps OR NOT kinds.candidate
      ORDER BY newest.candidate, newest.occurred_at DESC LIMIT 1
    ) AS found
    ORDER BY asked.n, keys.key;
END
$$;
COMMENT ON FUNCTION ses_ledger_suppressed(text[], boolean) IS 'Those of these addresses that are not to be written to, and why';

CREATE FUNCTION ses_ledger_suppressed(whom text, perhaps boolean DEFAULT false)
  RETURNS TABLE (address text, cause text, occurred_at timestamptz, certain boolean, reports integer, subtype text,
                 smtp_status text, email_log_uuid uuid, event_uuid uuid)
  LANGUAGE plpgsql STABLE  -- which keeps its plan
  AS $$ BEGIN RETURN QUERY SELECT * FROM ses_ledger_suppressed(ARRAY[whom], perhaps); END $$;
COMMENT ON FUNCTION ses_ledger_suppressed(text, boolean) IS 'Whether this address is not to be written to, and why: no row means that it may be';

-- Lets an address be written to again; NULL if it is not suppressed. Only what happens afterwards suppresses it anew.
-- As the owner: it is for members of ses_ledger_owner, and for logins that are granted this function (see migration 13).
CREATE FUNCTION ses_ledger_remove_suppression(whom text, why text) RETURNS uuid
  LANGUAGE plpgsql SECURITY DEFINER SET enable_seqscan = off SET jit = off
  AS $$
DECLARE
  key CONSTANT text := ses_ledger_suppression_key(whom);
  plain ses_ledger_suppressions;
  removal uuid;
BEGIN
  IF btrim(coalesce(why, '')) = '' THEN
    RAISE invalid_parameter_value USING MESSAGE = 'a removal needs a reason';
  END IF;
  -- One at a time: the second finds that there is nothing left to remove.
  PERFORM pg_advisory_xact_lock(hashtext('ses_ledger suppression'), hashtext(key));
  INSERT INTO ses_ledger_suppression_removals (address, reason, covers_until)
  SELECT
    -- Under the digest only where that is all there is: an address that was erased is not written down again.
    coalesce((SELECT s.address FROM ses_ledger_suppressions AS s WHERE s.address = key ORDER BY s.candidate, s.occurred_at DESC LIMIT 1),
             ses_ledger_erased_name(key)),
    btrim(why), greatest(now(), found.occurred_at)
  FROM ses_ledger_suppressed(key) AS found LIMIT 1
  RETURNING uuid INTO removal;
  RETURN removal;
END
$$;
COMMENT ON FUNCTION ses_ledger_remove_suppression(text, text) IS 'Lets an address be written to again, for a reason; NULL if it is not suppressed';

DO $$
DECLARE
  name text;
BEGIN
  -- They run with somebody else's search path, some of them with the owner's rights: pin ours, temporary objects last.
  -- The two pure ones are left open to be inlined: they name nothing but each other.
  FOREACH name IN ARRAY ARRAY[
    'ses_ledger_note_suppression()',
    'ses_ledger_suppressed(text[], boolean)',
    'ses_ledger_suppressed(text, boolean)',
    'ses_ledger_remove_suppression(text, text)'
  ] LOOP
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
  END LOOP;
END
$$;

ALTER TABLE ses_ledger_suppressions ENABLE ROW LEVEL SECURITY;
ALTER TABLE ses_ledger_suppression_removals ENABLE ROW LEVEL SECURITY;
GRANT EXECUTE ON FUNCTION ses_ledger_suppressed(text[], boolean), ses_ledger_suppressed(text, boolean)
  TO ses_ledger_sender, ses_ledger_operator;
GRANT SELECT, INSERT, UPDATE (subtype, smtp_status, email_log_uuid, event_uuid) ON ses_ledger_suppressions TO ses_ledger_worker;
GRANT SELECT ON ses_ledger_suppressions, ses_ledger_suppression_removals TO ses_ledger_operator;
CREATE POLICY worker ON ses_ledger_suppressions TO ses_ledger_worker USING (true);
CREATE POLICY operator ON ses_ledger_suppressions FOR SELECT TO ses_ledger_operator USING (true);
CREATE POLICY operator ON ses_ledger_suppression_removals FOR SELECT TO ses_ledger_operator USING (true);

-- From here on nothing is missed. Others who store wait until the rest is done: about a minute per million mails that bounced.
CREATE TRIGGER ses_ledger_note_suppression AFTER INSERT ON email_events
  -- Without functions of ours: they would be unfolded again with each statement, for each month.
  FOR EACH ROW WHEN (NEW.event_type IN ('bounce', 'complaint') AND NEW.recipient <> '' AND NEW.recipient NOT LIKE 'erased:%')
  EXECUTE FUNCTION ses_ledger_note_suppression();

-- What is stored already: by the indexes of migration 3, so it takes the time of what bounced, not of what is there.
SET LOCAL enable_seqscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
INSERT INTO ses_ledger_suppressions (address, candidate, occurred_at, cause, subtype, smtp_status, email_log_uuid, event_uuid)
SELECT * FROM (
  SELECT CASE WHEN e.recipient LIKE 'erased:%' THEN e.recipient ELSE ses_ledger_suppression_key(e.recipient) END AS key, e.candidate,
         e.occurred_at,
         ses_ledger_suppression_cause(e.event_type, e.bounce_type, e.bounce_subtype, e.complaint_type, e.complaint_subtype) AS cause,
         coalesce(e.bounce_subtype, e.complaint_subtype, e.complaint_type), e.smtp_status, e.email_log_uuid, e.uuid
  FROM (SELECT uuid FROM email_logs WHERE bounced_at IS NOT NULL
        UNION SELECT uuid FROM email_logs WHERE complained_at IS NOT NULL) AS mails
  JOIN email_events AS e ON e.email_log_uuid = mails.uuid AND e.event_type IN ('bounce', 'complaint')
) AS stored
WHERE key IS NOT NULL AND cause IS NOT NULL
ORDER BY key, candidate, occurred_at, cause, email_log_uuid
ON CONFLICT DO NOTHING;
-- What waits for its mail.
INSERT INTO ses_ledger_suppressions (address, candidate, occurred_at, cause, subtype, smtp_status)
SELECT * FROM (
  SELECT CASE WHEN o.recipient LIKE 'erased:%' THEN o.recipient ELSE ses_ledger_suppression_key(o.recipient) END AS key, o.candidate,
         o.occurred_at,
         ses_ledger_suppression_cause(o.event_type, o.bounce_type, o.bounce_subtype, o.complaint_type, o.complaint_subtype) AS cause,
         coalesce(o.bounce_subtype, o.complaint_subtype, o.complaint_type), o.smtp_status
  FROM orphaned_events AS o WHERE o.event_type IN ('bounce', 'complaint')
) AS waiting
WHERE key IS NOT NULL AND cause IS NOT NULL
ON CONFLICT DO NOTHING;
-- What only the facts of a mail know by now, because its row tells another bounce or was let go: certain if it went to one address.
INSERT INTO ses_ledger_suppressions (address, candidate, occurred_at, cause, email_log_uuid)
SELECT DISTINCT ON (key, at, cause) key, false, at, cause, uuid FROM (
  SELECT l.uuid, l.bounced_at AS at, 'bounce' AS cause, ses_ledger_suppression_key(l.recipients[1]) AS key
  FROM email_logs AS l
  WHERE l.bounced_at IS NOT NULL AND l.bounce_class = 'permanent' AND cardinality(l.recipients) = 1
    AND NOT EXISTS (SELECT FROM email_events AS e WHERE e.email_log_uuid = l.uuid AND e.event_type IN ('bounce', 'complaint')
                      AND ses_ledger_bounce_class_of(e.event_type, e.bounce_type, e.complaint_subtype) = 'permanent')
  UNION ALL
  SELECT l.uuid, l.complained_at, 'complaint', ses_ledger_suppression_key(l.recipients[1])
  FROM email_logs AS l
  WHERE l.complained_at IS NOT NULL AND cardinality(l.recipients) = 1
    AND NOT EXISTS (SELECT FROM email_events AS e WHERE e.email_log_uuid = l.uuid AND e.event_type = 'complaint'
                      AND ses_ledger_fact(e.event_type, e.complaint_type, e.complaint_subtype) = 'complained')
) AS known
WHERE key LIKE '%@%' AND key !~ '[,;]'
ORDER BY key, at, cause, uuid
ON CONFLICT DO NOTHING;
RESET enable_seqscan;
RESET enable_hashjoin;
RESET enable_mergejoin;

RESET ROLE;
