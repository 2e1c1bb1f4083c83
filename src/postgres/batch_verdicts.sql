SELECT m.ord,
       CASE WHEN inserted.uuid IS NOT NULL THEN 'inserted' WHEN parked.uuid IS NOT NULL THEN 'orphaned'
            WHEN m.is_let_go THEN 'expired' ELSE 'duplicate' END AS verdict,
       merged.linked
FROM m
LEFT JOIN inserted ON inserted.uuid = m.uuid
LEFT JOIN parked ON parked.uuid = m.uuid
LEFT JOIN merged ON merged.uuid = m.email_log_uuid
