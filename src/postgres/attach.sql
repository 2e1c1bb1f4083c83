-- What is due goes the way of a batch.
u AS MATERIALIZED (SELECT due.*, NULL::timestamptz AS mailed_at, row_number() OVER () AS ord FROM due),
