//! One file per command: its arguments and what it does.

pub mod adopt;
pub mod decode;
pub mod demo;
pub mod dlq;
pub mod doctor;
pub mod erase;
pub mod explain;
pub mod figures;
pub mod find;
pub mod health;
pub mod migrate;
pub mod orphans;
pub mod partitions;
pub mod quarantine;
pub mod rebuild;
pub mod retention;
pub mod run;
pub mod serve;
pub mod simulate;
pub mod smoke;
pub mod status;
pub mod suppressed;

mod ask;
mod removal;
mod screen;
mod target;
