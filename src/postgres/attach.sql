-- What is due goes the way of a batch.
u AS MATERIALIZED (SELECT due.*, row_number() OVER () AS ord FROM due),
