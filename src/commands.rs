//! One file per command: its arguments and what it does.

pub mod decode;
pub mod demo;
pub mod explain;
pub mod find;
pub mod dlq;
pub mod doctor;
pub mod health;
pub mod migrate;
pub mod orphans;
pub mod quarantine;
pub mod run;
pub mod serve;
pub mod simulate;
pub mod status;
pub mod smoke;

mod ask;
mod removal;
mod screen;
mod target;
