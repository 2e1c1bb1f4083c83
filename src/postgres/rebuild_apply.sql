,
-- Their rows are locked, in the order of their ids, and were so before this statement began: see postgres/rebuild.rs.
applied AS (
  UPDATE email_logs AS l SET
    sent_at = r.sent_at,
    delivered_at = r.delivered_at,
    delayed_at = r.delayed_at,
    bounced_at = r.bounced_at,
    complained_at = r.complained_at,
    rejected_at = r.rejected_at,
    failed_at = r.failed_at,
    opened_at = r.opened_at,
    clicked_at = r.clicked_at,
    open_count = r.open_count,
    click_count = r.click_count,
    bounce_class = r.bounce_class
  FROM rebuilt AS r JOIN compared AS c USING (uuid)
  WHERE l.uuid = r.uuid AND c.is_mended
    -- Said once more, so that no plan looks for them in all of the table.
    AND l.uuid > $1 AND l.uuid <= $2 AND ($3 IS NULL OR l.uuid = ANY ($3))
)
