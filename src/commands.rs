//! One file per command: its arguments and what it does.

pub mod decode;
pub mod demo;
pub mod health;
pub mod migrate;
pub mod run;
pub mod simulate;
pub mod status;

mod screen;
mod target;
