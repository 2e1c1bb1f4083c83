,
-- And leaves the orphans once its mail has it.
gone AS (
  DELETE FROM orphaned_events AS o USING m WHERE o.uuid = m.uuid AND m.email_log_uuid IS NOT NULL
)
SELECT count(*) AS attached, count(inserted.uuid) AS inserted,
       coalesce(array_agg(DISTINCT merged.linked) FILTER (WHERE merged.linked IS NOT NULL), '{}') AS linked
FROM m
LEFT JOIN inserted ON inserted.uuid = m.uuid
LEFT JOIN merged ON merged.uuid = m.email_log_uuid
WHERE m.email_log_uuid IS NOT NULL
