-- Adopted events, one array per column, their mail known already; and what is here of them.
WITH given AS MATERIALIZED (
  SELECT * FROM unnest(
    $1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::boolean[],
    $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[],
    $16::text[], $17::uuid[], $18::text[], $19::text[], $20::text[], $21::text[], $22::text[],
    $23::text[], $24::text[], $25::text[], $26::text[], $27::text[], $28::timestamptz[], $29::timestamptz[]
  ) WITH ORDINALITY AS t (
    uuid, aws_message_id, log_uuid, event_type, occurred_at, time_source, recipient, candidate,
    bounce_type, bounce_subtype, smtp_status, diagnostic, complaint_type, complaint_subtype, delay_type,
    link, link_digest, ip, user_agent, bot, feedback_id, reporting_mta,
    payload, queue, sqs_message_id, sns_message_id, eventbridge_id, received_at, mailed_at, ord
  )
),
-- The same event, if it is here. An open or click of a whole second is the same as one within that second, and the other
-- way round if the one that is here was adopted. Each half has its own index.
twins AS MATERIALIZED (
  SELECT given.ord, twin.queue, twin.sqs_message_id
  FROM given CROSS JOIN LATERAL (
    SELECT e.queue, e.sqs_message_id FROM email_events AS e
    WHERE given.event_type NOT IN ('open', 'click') AND e.event_type NOT IN ('open', 'click')
      AND e.email_log_uuid = given.log_uuid AND e.event_type = given.event_type AND e.recipient = given.recipient
    UNION ALL
    (SELECT e.queue, e.sqs_message_id FROM email_events AS e
     WHERE given.event_type IN ('open', 'click') AND e.event_type IN ('open', 'click')
       AND e.email_log_uuid = given.log_uuid AND e.event_type = given.event_type
       AND e.occurred_at >= date_trunc('second', given.occurred_at)
       AND e.occurred_at < date_trunc('second', given.occurred_at) + interval '1 second'
       AND (e.occurred_at = given.occurred_at
         OR given.occurred_at = date_trunc('second', given.occurred_at)
         OR (e.occurred_at = date_trunc('second', given.occurred_at) AND e.queue LIKE 'adopted:%'))
       AND e.link_digest = given.link_digest
       AND (e.recipient = given.recipient OR e.recipient = '' OR given.recipient = '')
     ORDER BY e.queue = given.queue AND e.sqs_message_id = given.sqs_message_id DESC LIMIT 1)
  ) AS twin
)
