//! A queue, a database and a sending application of our own on the loopback interface, for the demo, tests and benchmarks.

pub mod binaries;
pub mod guard;
pub mod lambda_api;
pub mod postgres;
pub mod queue;
pub mod sqs_endpoint;
pub mod story;
