-- The two tables of PhoenixKit that hold mails and events, with the columns they have there, filled with :mails made-up mails
-- and about four event rows each; with what such tables look like after years: duplicates, ids that are only in headers, times
-- of whole seconds, events of mails that are gone. Everything follows from the number of the mail.
--   psql --set=mails=250000 --file=tests/bench/phoenix_kit.sql DATABASE
CREATE TABLE phoenix_kit_email_logs (
  uuid uuid PRIMARY KEY,
  message_id varchar(255) NOT NULL,
  "to" varchar(255) NOT NULL,
  "from" varchar(255) NOT NULL,
  subject varchar(255),
  headers jsonb DEFAULT '{}',
  body_preview text,
  body_full text,
  template_name varchar(255),
  campaign_id varchar(255),
  attachments_count integer NOT NULL DEFAULT 0,
  size_bytes integer,
  retry_count integer NOT NULL DEFAULT 0,
  error_message text,
  status varchar(255) NOT NULL DEFAULT 'sent',
  sent_at timestamptz NOT NULL DEFAULT now(),
  delivered_at timestamptz,
  configuration_set varchar(255),
  message_tags jsonb DEFAULT '{}',
  provider varchar(255) NOT NULL DEFAULT 'unknown',
  inserted_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  aws_message_id varchar(255),
  bounced_at timestamptz,
  complained_at timestamptz,
  opened_at timestamptz,
  clicked_at timestamptz,
  body_compressed boolean NOT NULL DEFAULT false,
  queued_at timestamptz,
  rejected_at timestamptz,
  failed_at timestamptz,
  delayed_at timestamptz,
  user_uuid uuid,
  locale varchar(10) NOT NULL DEFAULT 'en'
);
CREATE UNIQUE INDEX phoenix_kit_email_logs_aws_message_id_uidx ON phoenix_kit_email_logs (aws_message_id) WHERE aws_message_id <> '';
CREATE TABLE phoenix_kit_email_events (
  event_type varchar(255) NOT NULL,
  event_data jsonb DEFAULT '{}',
  occurred_at timestamptz NOT NULL DEFAULT now(),
  ip_address varchar(255),
  user_agent varchar(255),
  geo_location jsonb DEFAULT '{}',
  link_url varchar(255),
  bounce_type varchar(255),
  complaint_type varchar(255),
  inserted_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  reject_reason varchar(255),
  delay_type varchar(255),
  subscription_type varchar(255),
  failure_reason varchar(255),
  uuid uuid PRIMARY KEY,
  email_log_uuid uuid NOT NULL
);

-- A UUID of version 7: a time, then what follows from a name.
CREATE FUNCTION pk_uuid(at timestamptz, name text) RETURNS uuid LANGUAGE sql IMMUTABLE
  RETURN (SELECT (substr(ms, 1, 8) || '-' || substr(ms, 9, 4) || '-7' || substr(rest, 1, 3) || '-a' || substr(rest, 4, 3) || '-' || substr(rest, 7, 12))::uuid
          FROM (SELECT lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS ms, md5(name) AS rest) AS parts);
CREATE FUNCTION pk_ses_id(n integer) RETURNS text LANGUAGE sql IMMUTABLE
  RETURN (SELECT '0100' || substr(h, 1, 12) || '-' || substr(h, 13, 8) || '-4000-8000-9000-' || substr(h, 21, 12) || '-000000' FROM (SELECT md5('mail ' || n) AS h) AS parts);

CREATE TABLE pk_mails AS
  SELECT n, at, pk_uuid(at, 'log ' || n) AS uuid, pk_ses_id(n) AS ses_id, 'user' || n % 5000 || '@Example.NET' AS recipient
  FROM (SELECT n, timestamptz '2026-06-01 08:00:00.25+00' + n * interval '20 seconds' AS at FROM generate_series(1, :mails) AS n) AS mails;

INSERT INTO phoenix_kit_email_logs (uuid, message_id, "to", "from", subject, headers, template_name, campaign_id, status, sent_at, delivered_at,
  message_tags, provider, inserted_at, updated_at, aws_message_id, opened_at, bounced_at)
SELECT uuid, 'pk_' || md5('internal ' || n), recipient, 'shop@example.com', 'Your order ' || n,
  CASE WHEN n % 10 = 0 THEN jsonb_build_object('X-SES-Message-ID', '<' || ses_id || '@email.amazonses.com>')
       WHEN n % 10 = 1 THEN jsonb_build_object('Subject', 'Your order', 'message-id', '<' || ses_id || '@eu-west-1.amazonses.com>')
       -- The program's own, which SES never saw.
       WHEN n % 50 = 7 THEN jsonb_build_object('Message-ID', '<' || md5('own ' || n) || '@shop.example.com>')
       ELSE '{}' END,
  'order', 'autumn-' || n % 12, CASE WHEN n % 50 = 7 THEN 'queued' WHEN n % 20 = 5 THEN 'hard_bounced' ELSE 'sent' END,
  date_trunc('second', at), CASE WHEN n % 20 <> 5 AND n % 50 <> 7 THEN date_trunc('second', at) + interval '2 seconds' END,
  CASE WHEN n % 20 = 3 THEN jsonb_build_object('aws_message_id', ses_id) ELSE '{}' END, 'aws_ses', at, at,
  CASE WHEN n % 10 = 0 OR n % 20 = 3 OR n % 50 = 7 THEN NULL WHEN n % 10 = 1 THEN '' ELSE ses_id END,
  CASE WHEN n % 2 = 0 AND n % 50 <> 7 AND n % 20 <> 5 THEN date_trunc('second', at) + interval '1 minute' END,
  CASE WHEN n % 20 = 5 THEN date_trunc('second', at) + interval '3 seconds' END
FROM pk_mails;
-- Written twice, the second time with the id in the headers alone.
INSERT INTO phoenix_kit_email_logs (uuid, message_id, "to", "from", subject, headers, inserted_at, updated_at, sent_at)
SELECT pk_uuid(at + interval '1 minute', 'again ' || n), 'pk_' || md5('again ' || n), recipient, 'shop@example.com', 'Your order ' || n,
  jsonb_build_object('x_ses_message_id', ses_id), at, at, date_trunc('second', at)
FROM pk_mails WHERE n % 25 = 2;

-- An event row: times of whole seconds, the time with its milliseconds in the data, if at all.
CREATE FUNCTION pk_event(mail pk_mails, kind text, after interval, again integer, data jsonb) RETURNS phoenix_kit_email_events LANGUAGE sql IMMUTABLE
  RETURN ROW(kind, data || CASE WHEN data ? 'timestamp' THEN jsonb_build_object('timestamp', to_char((mail.at + after) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')) ELSE '{}'::jsonb END,
    date_trunc('second', mail.at + after), data->>'ipAddress', data->>'userAgent', '{}'::jsonb, data->>'link',
    CASE data->>'bounceType' WHEN 'Permanent' THEN 'hard' WHEN 'Transient' THEN 'soft' END, data->>'complaintFeedbackType',
    mail.at + after, mail.at + after, NULL, NULL, NULL, NULL,
    pk_uuid(mail.at + after + again * interval '90 milliseconds', concat_ws(' ', kind, mail.n, after, again)), mail.uuid)::phoenix_kit_email_events;

-- What the program noted itself when it had sent.
INSERT INTO phoenix_kit_email_events
SELECT e.* FROM pk_mails AS m CROSS JOIN LATERAL pk_event(m, 'send', '0.1 seconds', 0, '{"provider": "aws_ses", "timestamp": ""}') AS e WHERE n % 50 <> 7;
-- Deliveries: none for what bounced; for some only the log row tells. Every seventh came twice.
INSERT INTO phoenix_kit_email_events
SELECT e.* FROM pk_mails AS m CROSS JOIN generate_series(0, 1) AS again CROSS JOIN LATERAL pk_event(m, 'delivery', '2 seconds', again,
  jsonb_build_object('timestamp', '', 'recipients', jsonb_build_array(recipient), 'smtpResponse', '250 2.0.0 OK', 'reportingMTA', 'a.smtp-out.amazonses.com')) AS e
WHERE n % 20 <> 5 AND n % 50 <> 7 AND n % 30 <> 11 AND (again = 0 OR n % 7 = 0);
INSERT INTO phoenix_kit_email_events
SELECT e.* FROM pk_mails AS m CROSS JOIN LATERAL pk_event(m, 'bounce', '3 seconds', 0, jsonb_build_object('timestamp', '', 'bounceType', 'Permanent',
  'bounceSubType', 'NoEmail', 'bouncedRecipients', jsonb_build_array(jsonb_build_object('emailAddress', recipient, 'status', '5.1.1', 'diagnosticCode', 'smtp; 550 5.1.1 unknown')))) AS e
WHERE n % 20 = 5;
-- Opens, two for each, the second of whole seconds only; every sixth of them twice.
INSERT INTO phoenix_kit_email_events
SELECT e.* FROM pk_mails AS m CROSS JOIN generate_series(1, 2) AS often CROSS JOIN generate_series(0, 1) AS again CROSS JOIN LATERAL pk_event(m, 'open',
  often * interval '1 minute', again, CASE often WHEN 1 THEN '{"timestamp": "", "ipAddress": "192.0.2.7", "userAgent": "Mozilla/5.0"}'::jsonb ELSE '{"ipAddress": "192.0.2.7"}' END) AS e
WHERE n % 2 = 0 AND n % 50 <> 7 AND n % 20 <> 5 AND (again = 0 OR n % 6 = 0);
INSERT INTO phoenix_kit_email_events
SELECT e.* FROM pk_mails AS m CROSS JOIN generate_series(1, 2) AS link CROSS JOIN LATERAL pk_event(m, 'click', '70 seconds', link,
  jsonb_build_object('timestamp', '', 'link', 'https://shop.example.com/' || link, 'ipAddress', '192.0.2.7')) AS e
WHERE n % 2 = 0 AND n % 50 <> 7 AND n % 20 <> 5;
-- One pair 20,000 times, or as often as there are mails.
INSERT INTO phoenix_kit_email_events
SELECT e.* FROM pk_mails AS m CROSS JOIN generate_series(1, least(20000, :mails)) AS again CROSS JOIN LATERAL pk_event(m, 'delivery', '5 seconds', again, '{"timestamp": ""}') AS e WHERE n = 2;
-- Of mails that are gone, and some that say nothing.
INSERT INTO phoenix_kit_email_events (event_type, occurred_at, inserted_at, updated_at, uuid, email_log_uuid)
SELECT 'open', at, at, at, pk_uuid(at, 'gone ' || n), pk_uuid(at, 'nobody ' || n) FROM pk_mails WHERE n % 100 = 9;
INSERT INTO phoenix_kit_email_events (event_type, occurred_at, inserted_at, updated_at, uuid, email_log_uuid)
SELECT ' ', at, at, at, pk_uuid(at, 'nothing ' || n), uuid FROM pk_mails WHERE n % 200 = 9;
ANALYZE phoenix_kit_email_logs;
ANALYZE phoenix_kit_email_events;
