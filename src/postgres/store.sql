-- The one statement that stores: `u` holds the events, wherever they come from.
-- Those of mails in which somebody was erased (see migration 16): a row of hers is known by what stands in her place, and
-- nothing else of it comes back. A row that does not say whose it is may be hers.
erased AS MATERIALIZED (
  SELECT u.ord, ses_ledger_erased_name(u.recipient) AS name,
         u.recipient = '' OR bool_or(x.name = ses_ledger_erased_name(u.recipient)) AS is_hers
  FROM u JOIN ses_ledger_erased AS x ON x.mail IN (u.aws_message_id, u.log_uuid::text)
  -- Asked once for all of them: in most ledgers nobody was.
  WHERE (SELECT EXISTS (SELECT FROM ses_ledger_erased))
  GROUP BY u.ord, u.recipient
),
-- The mail of each: by the id of SES, else by its own id in the tag.
m AS MATERIALIZED (
  SELECT u.uuid, u.aws_message_id, u.log_uuid, u.event_type, u.occurred_at, u.time_source,
         CASE WHEN erased.is_hers THEN erased.name ELSE u.recipient END AS recipient, u.recipient AS spelled,
         u.candidate, u.bounce_type, u.bounce_subtype, u.smtp_status,
         CASE WHEN erased.is_hers THEN NULL ELSE u.diagnostic END AS diagnostic,
         u.complaint_type, u.complaint_subtype, u.delay_type,
         CASE WHEN erased.is_hers THEN NULL ELSE u.link END AS link, u.link_digest,
         CASE WHEN erased.is_hers THEN NULL ELSE u.ip END AS ip,
         CASE WHEN erased.is_hers THEN NULL ELSE u.user_agent END AS user_agent,
         u.bot, u.feedback_id, u.reporting_mta,
         -- The payload of another recipient's row may name her as well.
         CASE WHEN erased.ord IS NULL THEN u.payload END AS payload,
         u.queue, u.sqs_message_id, u.sns_message_id, u.eventbridge_id, u.received_at, u.mailed_at, u.ord,
         coalesce(by_id.uuid, by_tag.uuid) AS email_log_uuid,
         -- An id that the log would spell otherwise may be another mail's by then: refused for ever, and not for its data.
         by_id.uuid IS NULL AND by_tag.uuid IS NOT NULL AND by_tag.aws_message_id IS NULL
           AND ses_ledger_message_id(u.aws_message_id) = u.aws_message_id AS can_link,
         -- What belongs to a time that was let go (see migration 15). Of a known mail that is told by its id, or by its row
         -- where the id tells no time; of an unknown one by the id in the tag, or by the time at which SES took the mail.
         -- WHERE singleton, for its index: a plan that reads a table through counts as so dear that it would be compiled (JIT).
         coalesce(CASE
           WHEN by_id.uuid IS NULL AND by_tag.uuid IS NULL THEN
             u.mailed_at < (SELECT logs_from FROM ses_ledger_horizon WHERE singleton)
             OR (u.log_uuid < (SELECT logs_from_id FROM ses_ledger_horizon WHERE singleton) AND ses_ledger_is_v7(u.log_uuid))
           WHEN coalesce(by_id.uuid, by_tag.uuid) >= (SELECT events_from_id FROM ses_ledger_horizon WHERE singleton)
             AND coalesce(by_id.created_at, by_tag.created_at) >= (SELECT events_from FROM ses_ledger_horizon WHERE singleton) THEN false
           WHEN ses_ledger_is_v7(coalesce(by_id.uuid, by_tag.uuid)) THEN
             coalesce(by_id.uuid, by_tag.uuid) < (SELECT events_from_id FROM ses_ledger_horizon WHERE singleton)
           ELSE coalesce(by_id.created_at, by_tag.created_at) < (SELECT events_from FROM ses_ledger_horizon WHERE singleton)
         END, false) AS is_let_go
  FROM u
  LEFT JOIN erased USING (ord)
  LEFT JOIN email_logs AS by_id ON by_id.aws_message_id = u.aws_message_id
  LEFT JOIN email_logs AS by_tag ON by_id.uuid IS NULL AND by_tag.uuid = u.log_uuid
),
-- In the order of the conflict keys: without it, overlapping batches deadlock. The recipient before the time, because
-- the time is no part of the key of what happens once. Of equals the first in the batch stays.
inserted AS (
  INSERT INTO email_events (
    uuid, email_log_uuid, event_type, occurred_at, time_source, recipient, candidate,
    bounce_type, bounce_subtype, smtp_status, diagnostic, complaint_type, complaint_subtype, delay_type,
    link, link_digest, ip, user_agent, bot, feedback_id, reporting_mta,
    payload, queue, sqs_message_id, sns_message_id, eventbridge_id, received_at)
  SELECT
    uuid, email_log_uuid, event_type, occurred_at, time_source, recipient, candidate,
    bounce_type, bounce_subtype, smtp_status, diagnostic, complaint_type, complaint_subtype, delay_type,
    link, link_digest, ip, user_agent, bot, feedback_id, reporting_mta,
    payload::jsonb, queue, sqs_message_id, sns_message_id, eventbridge_id, received_at
  FROM m WHERE email_log_uuid IS NOT NULL AND NOT is_let_go
    -- An open or click that was adopted from a table of whole seconds is known by its second. Only mails up to the last
    -- such one are asked about: all others, and everybody who adopted nothing, pay for one comparison.
    AND (event_type NOT IN ('open', 'click')
      OR email_log_uuid > coalesce((SELECT whole_seconds_until FROM ses_ledger_adoptions WHERE whole_seconds_until IS NOT NULL
                                    ORDER BY whole_seconds_until DESC LIMIT 1), '00000000-0000-0000-0000-000000000000')
      OR (SELECT true FROM email_events AS e
          WHERE e.email_log_uuid = m.email_log_uuid AND e.event_type = m.event_type AND e.event_type IN ('open', 'click')
            AND e.occurred_at = date_trunc('second', m.occurred_at) AND e.link_digest = m.link_digest
            AND (e.recipient = m.recipient OR e.recipient = '' OR m.recipient = '')
            AND e.queue LIKE 'adopted:%' LIMIT 1) IS NULL)
  ORDER BY email_log_uuid, event_type, recipient, occurred_at, link_digest, ord
  ON CONFLICT DO NOTHING  -- without a target: covers both rules of uniqueness
  RETURNING uuid
),
-- Looks at `inserted` only to come after all of it: left alone, the statements take turns row by row as the final join
-- pulls, and then no order of rows keeps overlapping batches from a deadlock.
parked AS (
  INSERT INTO orphaned_events (
    uuid, aws_message_id, log_uuid, event_type, occurred_at, time_source, recipient, candidate,
    bounce_type, bounce_subtype, smtp_status, diagnostic, complaint_type, complaint_subtype, delay_type,
    link, link_digest, ip, user_agent, bot, feedback_id, reporting_mta,
    payload, queue, sqs_message_id, sns_message_id, eventbridge_id, received_at)
  SELECT
    uuid, aws_message_id, log_uuid, event_type, occurred_at, time_source, recipient, candidate,
    bounce_type, bounce_subtype, smtp_status, diagnostic, complaint_type, complaint_subtype, delay_type,
    link, link_digest, ip, user_agent, bot, feedback_id, reporting_mta,
    payload::jsonb, queue, sqs_message_id, sns_message_id, eventbridge_id, received_at
  FROM m WHERE email_log_uuid IS NULL AND NOT is_let_go AND (SELECT count(*) FROM inserted) >= 0
  ORDER BY aws_message_id, event_type, recipient, occurred_at, link_digest, log_uuid, bounce_type, complaint_type,
    complaint_subtype, ord
  ON CONFLICT DO NOTHING
  RETURNING uuid
),
-- Who is not to be written to again. What is really inserted tells that by itself (migration 18); this adds what got no row of its
-- own, and whom the row does not name any more. Nobody reads from it, so it comes after everything else.
suppressed AS (
  INSERT INTO ses_ledger_suppressions AS s
    (address, candidate, occurred_at, cause, subtype, smtp_status, email_log_uuid, event_uuid)
  SELECT DISTINCT ON (address, candidate, occurred_at, cause) *
  FROM (SELECT CASE WHEN recipient = spelled THEN ses_ledger_suppression_key(spelled)
                    ELSE ses_ledger_erased_name(ses_ledger_suppression_key(spelled)) END AS address,
               candidate, occurred_at,
               ses_ledger_suppression_cause(event_type, bounce_type, bounce_subtype, complaint_type, complaint_subtype) AS cause,
               coalesce(bounce_subtype, complaint_subtype, complaint_type), smtp_status, email_log_uuid,
               CASE WHEN uuid IN (SELECT uuid FROM inserted) THEN uuid END AS event_uuid
        FROM m
        WHERE event_type IN ('bounce', 'complaint') AND spelled <> '' AND spelled NOT LIKE 'erased:%'
          AND (recipient <> spelled OR uuid NOT IN (SELECT uuid FROM inserted))) AS said
  WHERE cause IS NOT NULL AND address IS NOT NULL
  ORDER BY address, candidate, occurred_at, cause, email_log_uuid, event_uuid
  -- One moment, two mails: the smaller id stays, whatever comes first.
  ON CONFLICT (address, candidate, occurred_at, cause) DO UPDATE SET
    subtype = excluded.subtype, smtp_status = excluded.smtp_status,
    email_log_uuid = excluded.email_log_uuid, event_uuid = excluded.event_uuid
  WHERE excluded.email_log_uuid < coalesce(s.email_log_uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
     OR excluded.email_log_uuid = s.email_log_uuid AND s.event_uuid IS NULL AND excluded.event_uuid IS NOT NULL
),
-- A log that gets its id from a tag: one id per log, one log per id.
links AS (
  SELECT email_log_uuid, min(aws_message_id) AS aws_message_id
  FROM (SELECT DISTINCT ON (aws_message_id) aws_message_id, email_log_uuid
        FROM m WHERE can_link ORDER BY aws_message_id, email_log_uuid) AS one_log_per_id
  GROUP BY email_log_uuid
),
-- What the events say about each mail. Times and classes come from every event, also from one whose row was there
-- already, or was let go: the earliest and the worst are the same whatever arrives first. Only counts need rows really inserted.
facts AS (
  SELECT s.email_log_uuid,
         min(occurred_at) FILTER (WHERE fact = 'sent') AS sent_at,
         min(occurred_at) FILTER (WHERE fact = 'delivered') AS delivered_at,
         min(occurred_at) FILTER (WHERE fact = 'delayed') AS delayed_at,
         min(occurred_at) FILTER (WHERE fact = 'bounced') AS bounced_at,
         min(occurred_at) FILTER (WHERE fact = 'complained') AS complained_at,
         min(occurred_at) FILTER (WHERE fact = 'rejected') AS rejected_at,
         min(occurred_at) FILTER (WHERE fact = 'failed') AS failed_at,
         min(occurred_at) FILTER (WHERE fact = 'opened') AS opened_at,
         min(occurred_at) FILTER (WHERE fact = 'clicked') AS clicked_at,
         count(*) FILTER (WHERE fact = 'opened' AND is_new)::integer AS opens,
         count(*) FILTER (WHERE fact = 'clicked' AND is_new)::integer AS clicks,
         max(bounce_class) AS bounce_class,
         min(links.aws_message_id) AS link
  FROM (SELECT m.email_log_uuid, m.occurred_at, inserted.uuid IS NOT NULL AS is_new,
               ses_ledger_fact(m.event_type, m.complaint_type, m.complaint_subtype) AS fact,
               ses_ledger_bounce_class_of(m.event_type, m.bounce_type, m.complaint_subtype) AS bounce_class
        FROM m LEFT JOIN inserted USING (uuid)
        WHERE m.email_log_uuid IS NOT NULL AND (SELECT count(*) FROM parked) >= 0) AS s  -- after all of `parked`
  LEFT JOIN links USING (email_log_uuid)
  GROUP BY s.email_log_uuid
  ORDER BY s.email_log_uuid
),
-- Only logs that something really changes for: an untouched row costs nothing.
merged AS (
  UPDATE email_logs AS l SET
    sent_at = least(l.sent_at, f.sent_at),
    delivered_at = least(l.delivered_at, f.delivered_at),
    delayed_at = least(l.delayed_at, f.delayed_at),
    bounced_at = least(l.bounced_at, f.bounced_at),
    complained_at = least(l.complained_at, f.complained_at),
    rejected_at = least(l.rejected_at, f.rejected_at),
    failed_at = least(l.failed_at, f.failed_at),
    opened_at = least(l.opened_at, f.opened_at),
    clicked_at = least(l.clicked_at, f.clicked_at),
    open_count = l.open_count + f.opens,
    click_count = l.click_count + f.clicks,
    bounce_class = greatest(l.bounce_class, f.bounce_class),
    aws_message_id = coalesce(l.aws_message_id, f.link)
  FROM facts AS f
  WHERE l.uuid = f.email_log_uuid
    AND (f.opens > 0 OR f.clicks > 0
      OR f.sent_at < coalesce(l.sent_at, 'infinity')
      OR f.delivered_at < coalesce(l.delivered_at, 'infinity')
      OR f.delayed_at < coalesce(l.delayed_at, 'infinity')
      OR f.bounced_at < coalesce(l.bounced_at, 'infinity')
      OR f.complained_at < coalesce(l.complained_at, 'infinity')
      OR f.rejected_at < coalesce(l.rejected_at, 'infinity')
      OR f.failed_at < coalesce(l.failed_at, 'infinity')
      OR f.opened_at < coalesce(l.opened_at, 'infinity')
      OR f.clicked_at < coalesce(l.clicked_at, 'infinity')
      OR f.bounce_class > l.bounce_class
      OR (f.link IS NOT NULL AND l.aws_message_id IS NULL))
  -- Only where orphans wait. What another worker parks at this moment is for the sweep.
  RETURNING l.uuid, CASE WHEN f.link = l.aws_message_id AND (
    f.link IN (SELECT aws_message_id FROM m WHERE email_log_uuid IS NULL)
    OR EXISTS (SELECT FROM orphaned_events AS o WHERE o.aws_message_id = f.link AND o.event_type NOT IN ('open', 'click'))
    OR EXISTS (SELECT FROM orphaned_events AS o WHERE o.aws_message_id = f.link AND o.event_type IN ('open', 'click'))
  ) THEN f.link END AS linked
)
