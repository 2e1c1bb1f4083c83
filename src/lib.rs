#![doc = include_str!("ARCHITECTURE.md")]
// Futures of sqlx in those of a pooler's transaction in those of Lambda's runtime.
#![recursion_limit = "256"]
// The modules in the order in which the data passes them.

mod aws;
pub mod lambda;
pub mod sqs;

pub mod event;
pub mod pipeline;

pub mod orphans;
pub mod postgres;
pub mod replay;
pub mod upkeep;

pub mod adoption;
pub mod erasure;
pub mod export;
pub mod retention;

mod doctor;
pub mod explain;
pub mod metrics;
pub mod pulse;
pub mod status;

pub mod cli;
pub mod commands;
pub mod http;
pub mod site;
pub mod telemetry;

mod readable;

pub mod local;
