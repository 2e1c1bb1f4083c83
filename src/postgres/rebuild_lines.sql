,
-- What changes, fact by fact; and what no stored event shows and is left all the same.
lines AS (
  SELECT uuid, line.*
  FROM compared AS c JOIN mails AS m USING (uuid) JOIN rebuilt AS r USING (uuid) LEFT JOIN shown AS s USING (uuid)
  CROSS JOIN LATERAL (
    SELECT fact, was IS DISTINCT FROM new AS is_mended,
           CASE WHEN was IS NOT DISTINCT FROM new THEN CASE WHEN stored IS NULL THEN 'no event' ELSE 'before its events' END
                WHEN was IS NULL THEN 'set' WHEN new IS NULL THEN 'removed' WHEN new < was THEN 'earlier' ELSE 'later' END AS change
    FROM (VALUES
      ('sent_at', m.sent_at, r.sent_at, s.sent_at),
      ('delivered_at', m.delivered_at, r.delivered_at, s.delivered_at),
      ('delayed_at', m.delayed_at, r.delayed_at, s.delayed_at),
      ('bounced_at', m.bounced_at, r.bounced_at, s.bounced_at),
      ('complained_at', m.complained_at, r.complained_at, s.complained_at),
      ('rejected_at', m.rejected_at, r.rejected_at, s.rejected_at),
      ('failed_at', m.failed_at, r.failed_at, s.failed_at),
      ('opened_at', m.opened_at, r.opened_at, s.opened_at),
      ('clicked_at', m.clicked_at, r.clicked_at, s.clicked_at)
    ) AS times (fact, was, new, stored) WHERE was IS DISTINCT FROM new OR new IS DISTINCT FROM stored
    UNION ALL
    SELECT fact, was <> new, CASE WHEN was = new THEN 'more than its events' WHEN was < new THEN 'higher' ELSE 'lower' END
    FROM (VALUES
      ('open_count', m.open_count, r.open_count, coalesce(s.open_count, 0)),
      ('click_count', m.click_count, r.click_count, coalesce(s.click_count, 0))
    ) AS counts (fact, was, new, stored) WHERE was <> new OR new <> stored
    UNION ALL
    SELECT 'bounce_class', m.bounce_class IS DISTINCT FROM r.bounce_class,
           coalesce(m.bounce_class::text, 'none')
             || CASE WHEN m.bounce_class IS DISTINCT FROM r.bounce_class THEN ' → ' || coalesce(r.bounce_class::text, 'none')
                     ELSE ', by its events ' || coalesce(s.bounce_class::text, 'none') END
    WHERE m.bounce_class IS DISTINCT FROM r.bounce_class OR r.bounce_class IS DISTINCT FROM s.bounce_class
    UNION ALL
    SELECT 'status', true, m.status || ' → ' || r.status WHERE m.status <> r.status
  ) AS line
  WHERE c.is_mended OR c.is_beyond
)
SELECT CASE WHEN is_mended THEN 'mended' ELSE 'left' END AS kind, fact, change, count(*) AS mails,
       (array_agg(uuid ORDER BY uuid))[1:3] AS examples
FROM lines GROUP BY is_mended, fact, change
UNION ALL SELECT 'mails', NULL, NULL, count(*), NULL FROM mails
UNION ALL SELECT 'events', NULL, NULL, coalesce(sum(events), 0)::bigint, NULL FROM shown
UNION ALL SELECT 'differ', NULL, NULL, count(*), NULL FROM compared WHERE is_mended
UNION ALL SELECT 'less', NULL, NULL, count(*), NULL FROM compared WHERE is_mended AND is_less
