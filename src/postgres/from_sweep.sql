-- Orphans whose mail is known by now, of the next slice in order of arrival.
-- $1: after this orphan, $2: up to this one.
WITH slice AS MATERIALIZED (
  SELECT uuid FROM orphaned_events WHERE uuid > $1::uuid AND uuid <= $2::uuid
),
due AS MATERIALIZED (
  SELECT o.* FROM orphaned_events AS o JOIN slice USING (uuid)
  WHERE EXISTS (SELECT FROM email_logs AS l WHERE l.aws_message_id = o.aws_message_id)
     OR EXISTS (SELECT FROM email_logs AS l WHERE l.uuid = o.log_uuid)
  ORDER BY o.uuid
  FOR UPDATE OF o SKIP LOCKED  -- another worker is attaching it at this moment
),
