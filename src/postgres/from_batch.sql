-- Events of a batch, one array per column; the position in the arrays is the event's number.
WITH u AS (
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
