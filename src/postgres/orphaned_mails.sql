-- Mails of which orphans wait, that of the newest orphan first, and why they wait as far as it can be told.
-- $1: before this orphan, $2: at most so many mails.
WITH ours AS MATERIALIZED (
  -- Whom our own mails come from, as far as the newest rows tell.
  SELECT array_agg(DISTINCT configuration_set) FILTER (WHERE configuration_set IS NOT NULL) AS sets,
         array_agg(DISTINCT lower(substring(sender FROM '@([^@>\s]+)'))) FILTER (WHERE sender LIKE '%@%') AS domains
  FROM (SELECT configuration_set, sender FROM email_logs ORDER BY uuid DESC LIMIT 10000) AS newest
),
-- The newest orphan of each. Twice the same question, because each half has its own index.
head AS MATERIALIZED (
  SELECT o.uuid, o.aws_message_id, o.queue, o.payload
  FROM orphaned_events AS o
  WHERE o.uuid < $1
    AND NOT EXISTS (SELECT FROM orphaned_events AS n
                    WHERE n.aws_message_id = o.aws_message_id AND n.event_type NOT IN ('open', 'click') AND n.uuid > o.uuid)
    AND NOT EXISTS (SELECT FROM orphaned_events AS n
                    WHERE n.aws_message_id = o.aws_message_id AND n.event_type IN ('open', 'click') AND n.uuid > o.uuid)
  ORDER BY o.uuid DESC LIMIT $2
),
mails AS MATERIALIZED (
  SELECT head.uuid, head.aws_message_id, head.queue, counted.*,
         head.payload #>> '{mail,tags,ses:configuration-set,0}' AS configuration_set,
         coalesce(lower(head.payload #>> '{mail,tags,ses:from-domain,0}'),
                  lower(substring(head.payload #>> '{mail,source}' FROM '@([^@>\s]+)'))) AS sender_domain
  FROM head, LATERAL (
    SELECT array_agg(event_type ORDER BY event_type) AS kinds, array_agg(events ORDER BY event_type) AS kind_counts,
           sum(events)::bigint AS events, min(first_at) AS first_at, max(last_at) AS last_at,
           array_agg(log_uuid) FILTER (WHERE log_uuid IS NOT NULL) AS log_uuids
    FROM (
      SELECT event_type, count(*) AS events, min(stored_at) AS first_at, max(stored_at) AS last_at, max(log_uuid::text)::uuid AS log_uuid
      FROM (SELECT * FROM orphaned_events WHERE aws_message_id = head.aws_message_id AND event_type NOT IN ('open', 'click')
            UNION ALL
            SELECT * FROM orphaned_events WHERE aws_message_id = head.aws_message_id AND event_type IN ('open', 'click')) AS its
      GROUP BY event_type
    ) AS of_kind
  ) AS counted
)
SELECT mails.*, CASE
    WHEN EXISTS (SELECT FROM email_logs AS l WHERE l.aws_message_id = mails.aws_message_id)
      OR EXISTS (SELECT FROM email_logs AS l WHERE l.uuid = ANY (mails.log_uuids)) THEN 'row_is_there'
    WHEN mails.log_uuids IS NOT NULL THEN 'no_such_uuid'
    WHEN mails.configuration_set <> ALL (ours.sets) OR mails.sender_domain <> ALL (ours.domains) THEN 'other_sender'
    WHEN mails.last_at > now() - interval '10 minutes' THEN 'young'
    ELSE 'no_row' END AS why
FROM mails, ours
ORDER BY mails.uuid DESC
