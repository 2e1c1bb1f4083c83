//! Reads the command line, starts logging, runs one command, ends with its exit code.

use std::process::ExitCode;

use ses_ledger::{
    cli::{Cli, Command, EXIT_USAGE, Surroundings},
    commands::{
        adopt, decode, demo, dlq, doctor, erase, explain, figures, find, health, migrate, orphans, partitions,
        quarantine, rebuild, retention, run, serve, simulate, smoke, status, suppressed,
    },
    telemetry,
};

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    let log = cli.log.as_deref().unwrap_or(cli.command.usual_log());
    let traces = match telemetry::start(cli.log_format, log, cli.command.traces().as_ref()) {
        Ok(traces) => traces,
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let outcome = match cli.command {
        Command::Run(args) => on_runtime(run::run(*args)),
        Command::Serve(args) => on_runtime(serve::run(*args)),
        Command::Health(args) => on_runtime(health::run(args)),
        Command::Demo(args) => on_runtime(demo::run(*args, Surroundings::read())),
        Command::Status(args) => on_runtime(status::run(args)),
        Command::Find(args) => on_runtime(find::run(args)),
        Command::Explain(args) => on_runtime(explain::run(args)),
        Command::Figures(args) => on_runtime(figures::run(args)),
        Command::Suppressed(args) => on_runtime(suppressed::run(*args)),
        Command::Orphans(args) => on_runtime(orphans::run(*args)),
        Command::Quarantine(args) => on_runtime(quarantine::run(*args)),
        Command::Dlq(args) => on_runtime(dlq::run(*args)),
        Command::Doctor(args) => on_runtime(doctor::run(*args)),
        Command::Smoke(args) => on_runtime(smoke::run(*args)),
        Command::Simulate(args) => on_runtime(simulate::run(*args, Surroundings::read())),
        Command::Retention(args) => on_runtime(retention::run(args)),
        Command::Erase(args) => on_runtime(erase::run(args)),
        Command::Rebuild(args) => on_runtime(rebuild::run(*args)),
        Command::Partitions(args) => on_runtime(partitions::run(args)),
        Command::Migrate(args) => on_runtime(migrate::run(args)),
        Command::Adopt(args) => on_runtime(adopt::run(*args)),
        Command::Decode(args) => decode::run(args),
    };
    if let Some(traces) = traces {
        traces.finish();
    }
    outcome.unwrap_or_else(|e| {
        eprintln!("error: {e:#}");
        ExitCode::FAILURE
    })
}

fn on_runtime(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}
