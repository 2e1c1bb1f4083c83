,
-- What happens once goes the usual way even if it is here: two bounces share a row, and both state facts.
u AS MATERIALIZED (
  SELECT given.* FROM given
  WHERE event_type NOT IN ('open', 'click') OR ord NOT IN (SELECT ord FROM twins)
),
