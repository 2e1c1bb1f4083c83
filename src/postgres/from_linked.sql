-- Orphans of mails that the worker has just linked. $1: the ids of SES.
-- Twice the same question, because each half has its own index.
WITH due AS MATERIALIZED (
  SELECT o.* FROM orphaned_events AS o JOIN (
    SELECT uuid FROM orphaned_events WHERE aws_message_id = ANY ($1::text[]) AND event_type NOT IN ('open', 'click')
    UNION ALL
    SELECT uuid FROM orphaned_events WHERE aws_message_id = ANY ($1::text[]) AND event_type IN ('open', 'click')
  ) AS found USING (uuid)
  ORDER BY o.uuid
  FOR UPDATE OF o SKIP LOCKED
),
