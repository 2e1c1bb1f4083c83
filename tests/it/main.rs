//! All integration tests in one binary: one link, one PostgreSQL cluster, one of each emulator.

mod arrivals;
mod database;
mod doubles;
mod emulator;
mod localstack;
mod real_store;
mod truth;
mod worker;

mod bench;
mod binary;
mod compose;
mod contract;
mod decode;
mod demo;
mod deployed;
mod end_to_end;
mod explain;
mod faults;
mod local;
mod local_postgres;
mod nothing_is_lost;
mod observability;
mod orphans;
mod outages;
mod pulse;
mod roles;
mod schema;
mod search;
mod signature;
mod simulate;
mod status;
mod store;
mod templates;
mod tls;
mod views;
