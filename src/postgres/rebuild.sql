-- What the facts of some mails would be by their stored events. $1, $2: mails after the one, up to the other; $3: of these only
-- those, NULL: all; $4: whether what no stored event shows is taken away.
-- Mails whose events are let go (see migration 15) are left out: what is stored of them is not all.
WITH mails AS MATERIALIZED (
  SELECT uuid, sent_at, delivered_at, delayed_at, bounced_at, complained_at, rejected_at, failed_at, opened_at, clicked_at,
         open_count, click_count, bounce_class, status
  FROM email_logs
  WHERE uuid > $1::uuid AND uuid <= $2::uuid AND ($3::uuid[] IS NULL OR uuid = ANY ($3))
    AND ((uuid >= (SELECT events_from_id FROM ses_ledger_horizon WHERE singleton)
          AND created_at >= (SELECT events_from FROM ses_ledger_horizon WHERE singleton))
      OR ses_ledger_is_let_go(uuid, created_at) IS NOT TRUE)
),
-- By the rules of store.sql, over all events of a mail at once; an open or click is a row, so its rows are what is counted.
-- `opens` and `clicks`: such rows, whatever they state today. `…_here`: a row of that kind, and of exactly the fact's time.
shown AS MATERIALIZED (
  SELECT e.email_log_uuid AS uuid, count(*) AS events,
         min(e.occurred_at) FILTER (WHERE e.fact = 'sent') AS sent_at,
         min(e.occurred_at) FILTER (WHERE e.fact = 'delivered') AS delivered_at,
         min(e.occurred_at) FILTER (WHERE e.fact = 'delayed') AS delayed_at,
         min(e.occurred_at) FILTER (WHERE e.fact = 'bounced') AS bounced_at,
         min(e.occurred_at) FILTER (WHERE e.fact = 'complained') AS complained_at,
         min(e.occurred_at) FILTER (WHERE e.fact = 'rejected') AS rejected_at,
         min(e.occurred_at) FILTER (WHERE e.fact = 'failed') AS failed_at,
         min(e.occurred_at) FILTER (WHERE e.fact = 'opened') AS opened_at,
         min(e.occurred_at) FILTER (WHERE e.fact = 'clicked') AS clicked_at,
         count(*) FILTER (WHERE e.fact = 'opened')::integer AS open_count,
         count(*) FILTER (WHERE e.fact = 'clicked')::integer AS click_count,
         max(e.bounce_class) AS bounce_class,
         count(*) FILTER (WHERE e.event_type = 'open')::integer AS opens,
         count(*) FILTER (WHERE e.event_type = 'click')::integer AS clicks,
         bool_or(e.occurred_at = mails.sent_at) FILTER (WHERE e.event_type = 'send') AS sent_here,
         bool_or(e.occurred_at = mails.delivered_at) FILTER (WHERE e.event_type = 'delivery') AS delivered_here,
         bool_or(e.occurred_at = mails.delayed_at) FILTER (WHERE e.event_type = 'delivery_delay') AS delayed_here,
         bool_or(e.occurred_at = mails.bounced_at) FILTER (WHERE e.event_type IN ('bounce', 'complaint')) AS bounced_here,
         bool_or(e.occurred_at = mails.complained_at) FILTER (WHERE e.event_type = 'complaint') AS complained_here,
         bool_or(e.occurred_at = mails.rejected_at) FILTER (WHERE e.event_type = 'reject') AS rejected_here,
         bool_or(e.occurred_at = mails.failed_at) FILTER (WHERE e.event_type = 'rendering_failure') AS failed_here,
         bool_or(e.occurred_at = mails.opened_at) FILTER (WHERE e.event_type = 'open') AS opened_here,
         bool_or(e.occurred_at = mails.clicked_at) FILTER (WHERE e.event_type = 'click') AS clicked_here
  FROM (SELECT email_log_uuid, event_type, occurred_at,
               ses_ledger_fact(event_type, complaint_type, complaint_subtype) AS fact,
               ses_ledger_bounce_class_of(event_type, bounce_type, complaint_subtype) AS bounce_class
        FROM email_events
        WHERE email_log_uuid > $1::uuid AND email_log_uuid <= $2::uuid AND ($3::uuid[] IS NULL OR email_log_uuid = ANY ($3))
        OFFSET 0) AS e  -- a fence: each rule is asked once for an event, not once for each column
  JOIN mails ON mails.uuid = e.email_log_uuid
  GROUP BY e.email_log_uuid
),
-- What stored events show is taken. What a mail has beyond them stays: an event whose row another one has may have told it.
-- Only where a stored event of that kind has exactly the time of the fact, and does not state it, a rule has changed.
times AS MATERIALIZED (
  SELECT uuid,
    CASE WHEN $4 OR m.sent_at IS NULL OR s.sent_at <= m.sent_at OR s.sent_here
         THEN s.sent_at ELSE m.sent_at END AS sent_at,
    CASE WHEN $4 OR m.delivered_at IS NULL OR s.delivered_at <= m.delivered_at OR s.delivered_here
         THEN s.delivered_at ELSE m.delivered_at END AS delivered_at,
    CASE WHEN $4 OR m.delayed_at IS NULL OR s.delayed_at <= m.delayed_at OR s.delayed_here
         THEN s.delayed_at ELSE m.delayed_at END AS delayed_at,
    CASE WHEN $4 OR m.bounced_at IS NULL OR s.bounced_at <= m.bounced_at OR s.bounced_here
         THEN s.bounced_at ELSE m.bounced_at END AS bounced_at,
    CASE WHEN $4 OR m.complained_at IS NULL OR s.complained_at <= m.complained_at OR s.complained_here
         THEN s.complained_at ELSE m.complained_at END AS complained_at,
    CASE WHEN $4 OR m.rejected_at IS NULL OR s.rejected_at <= m.rejected_at OR s.rejected_here
         THEN s.rejected_at ELSE m.rejected_at END AS rejected_at,
    CASE WHEN $4 OR m.failed_at IS NULL OR s.failed_at <= m.failed_at OR s.failed_here
         THEN s.failed_at ELSE m.failed_at END AS failed_at,
    CASE WHEN $4 OR m.opened_at IS NULL OR s.opened_at <= m.opened_at OR s.opened_here
         THEN s.opened_at ELSE m.opened_at END AS opened_at,
    CASE WHEN $4 OR m.clicked_at IS NULL OR s.clicked_at <= m.clicked_at OR s.clicked_here
         THEN s.clicked_at ELSE m.clicked_at END AS clicked_at
  FROM mails AS m LEFT JOIN shown AS s USING (uuid)
),
rebuilt AS MATERIALIZED (
  SELECT *, {status} AS status
  FROM (SELECT t.*,
          CASE WHEN $4 THEN coalesce(s.open_count, 0) WHEN s.open_count >= m.open_count OR s.opens >= m.open_count THEN s.open_count
               ELSE m.open_count END AS open_count,
          CASE WHEN $4 THEN coalesce(s.click_count, 0) WHEN s.click_count >= m.click_count OR s.clicks >= m.click_count THEN s.click_count
               ELSE m.click_count END AS click_count,
          -- A class goes with its bounce. One alone stays: a worse bounce may be in the row of a milder one.
          CASE WHEN $4 OR m.bounce_class IS NULL OR s.bounce_class >= m.bounce_class
                 OR (m.bounced_at IS NOT NULL AND (t.bounced_at <= m.bounced_at) IS NOT TRUE)
               THEN s.bounce_class ELSE m.bounce_class END AS bounce_class
        FROM times AS t JOIN mails AS m USING (uuid) LEFT JOIN shown AS s USING (uuid)) AS r
),
compared AS MATERIALIZED (
  SELECT uuid,
         (m.sent_at, m.delivered_at, m.delayed_at, m.bounced_at, m.complained_at,
          m.rejected_at, m.failed_at, m.opened_at, m.clicked_at,
          m.open_count, m.click_count, m.bounce_class)
         IS DISTINCT FROM
         (r.sent_at, r.delivered_at, r.delayed_at, r.bounced_at, r.complained_at,
          r.rejected_at, r.failed_at, r.opened_at, r.clicked_at,
          r.open_count, r.click_count, r.bounce_class) AS is_mended,
         -- Something is taken away, or told of later.
         NOT ((m.sent_at IS NULL OR r.sent_at <= m.sent_at) IS TRUE
           AND (m.delivered_at IS NULL OR r.delivered_at <= m.delivered_at) IS TRUE
           AND (m.delayed_at IS NULL OR r.delayed_at <= m.delayed_at) IS TRUE
           AND (m.bounced_at IS NULL OR r.bounced_at <= m.bounced_at) IS TRUE
           AND (m.complained_at IS NULL OR r.complained_at <= m.complained_at) IS TRUE
           AND (m.rejected_at IS NULL OR r.rejected_at <= m.rejected_at) IS TRUE
           AND (m.failed_at IS NULL OR r.failed_at <= m.failed_at) IS TRUE
           AND (m.opened_at IS NULL OR r.opened_at <= m.opened_at) IS TRUE
           AND (m.clicked_at IS NULL OR r.clicked_at <= m.clicked_at) IS TRUE
           AND (m.bounce_class IS NULL OR r.bounce_class >= m.bounce_class) IS TRUE) AS is_less,
         (r.sent_at, r.delivered_at, r.delayed_at, r.bounced_at, r.complained_at,
          r.rejected_at, r.failed_at, r.opened_at, r.clicked_at,
          r.open_count, r.click_count, r.bounce_class)
         IS DISTINCT FROM
         (s.sent_at, s.delivered_at, s.delayed_at, s.bounced_at, s.complained_at,
          s.rejected_at, s.failed_at, s.opened_at, s.clicked_at,
          coalesce(s.open_count, 0), coalesce(s.click_count, 0), s.bounce_class) AS is_beyond
  FROM mails AS m JOIN rebuilt AS r USING (uuid) LEFT JOIN shown AS s USING (uuid)
)
