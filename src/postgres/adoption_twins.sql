SELECT given.ord,
       CASE WHEN twins.ord IS NULL THEN 'adopted'
            WHEN twins.queue <> given.queue OR twins.sqs_message_id = given.sqs_message_id THEN 'there'
            ELSE 'collapsed' END AS verdict
FROM given LEFT JOIN twins ON twins.ord = given.ord
