SELECT given.ord,
       CASE WHEN inserted.uuid IS NOT NULL THEN 'adopted'
            WHEN parked.uuid IS NOT NULL THEN 'parked'
            WHEN given.log_uuid IS NULL THEN 'there'
            -- It was here, and was let go.
            WHEN m.is_let_go THEN 'there'
            WHEN twins.ord IS NOT NULL AND (twins.queue <> given.queue OR twins.sqs_message_id = given.sqs_message_id) THEN 'there'
            ELSE 'collapsed' END AS verdict
FROM given
LEFT JOIN m ON m.ord = given.ord
LEFT JOIN twins ON twins.ord = given.ord
LEFT JOIN inserted ON inserted.uuid = given.uuid
LEFT JOIN parked ON parked.uuid = given.uuid
-- Looked at only so that it is done.
LEFT JOIN (SELECT count(*) AS merged FROM merged) AS facts ON true
