//! Every command, flag, environment variable, default and unit; and the checks across them.
//! The only file that reads the environment.

use std::{collections::BTreeMap, ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

use crate::{
    commands::{
        adopt::AdoptArgs, decode, demo::DemoArgs, dlq::DlqArgs, doctor::DoctorArgs, erase::EraseArgs,
        explain::ExplainArgs, figures::FiguresArgs, find::FindArgs, health, migrate::MigrateArgs, orphans::OrphansArgs,
        partitions::PartitionsArgs, quarantine::QuarantineArgs, rebuild::RebuildArgs, retention::RetentionArgs,
        serve::ServeArgs, simulate::SimulateArgs, smoke::SmokeArgs, status::StatusArgs, suppressed::SuppressedArgs,
    },
    metrics::{Export, emf::EmfSettings},
    pipeline::{
        PipelineSettings,
        decode::{DecodeSettings, PayloadPolicy},
    },
    postgres::{Auth, Pooler, PostgresSettings, rollup},
    pulse::{self, Identity, Runtime},
    retention::Retention,
    site::{Keys, SiteSettings},
    sqs::{Access, SqsSettings},
    telemetry::{LogFormat, TraceSettings},
    upkeep::UpkeepSettings,
};

/// Bad usage or configuration (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;
/// Something that we need is not there or does not let us in: queue, database, schema (`EX_UNAVAILABLE`).
pub const EXIT_UNAVAILABLE: u8 = 69;

/// The exact history of every email that an application sends through Amazon SES.
///
/// SES reports what becomes of each mail to SNS or EventBridge, and so to an SQS queue. ses-ledger is the worker
/// behind that queue: it stores every event in PostgreSQL exactly once, and only then deletes its message.
#[derive(Parser)]
#[command(name = "ses-ledger", version, propagate_version = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// How log lines look; they go to standard error
    #[arg(long, env, global = true, value_enum, default_value_t = LogFormat::Auto, help_heading = "Logging")]
    pub log_format: LogFormat,

    /// What to log: error, warn, info, debug, trace, or per module like `ses_ledger=debug,warn` [default: info; demo and simulate: error]
    #[arg(long, env, global = true, value_name = "FILTER", help_heading = "Logging")]
    pub log: Option<String>,
}

const AFTER_HELP: &str = "\
Try it:            ses-ledger demo
Prove it:          ses-ledger simulate
Set up a database: ses-ledger migrate up
Run the worker:    ses-ledger run

Exit codes: 0 all is well; 1 something failed or was found; 64 bad usage or configuration;
69 the queue, the database or its schema is not there or does not let us in.";

#[derive(Subcommand)]
pub enum Command {
    /// Run the worker: receive, store, delete
    ///
    /// Only the database and the queue have to be named. Each setting is a flag or a variable; the flag wins. Times are
    /// written like 500ms, 20s, 5m or 2h. AWS credentials are found as by the AWS command line: variables, profile, single
    /// sign-on, the role of the container or the machine; a queue on the loopback address needs none.
    Run(Box<RunArgs>),
    /// Show the page without a worker: what happens now, any mail, what is stuck, and figures
    ///
    /// `run` shows the same page at the same address. This is for a place where no worker runs, or for a login that may only
    /// read. On another address than a loopback one it takes SITE_TOKEN, or SITE_USER and SITE_PASSWORD.
    Serve(Box<ServeArgs>),
    /// See it work within a minute: with its own queue, its own PostgreSQL, and made-up mails
    Demo(Box<DemoArgs>),
    /// Ask a worker on this machine whether it moves on: for a container's health check
    Health(health::Args),
    /// Is it keeping up? Shows queues, rates, lag, workers, database, both identities and the cost, at one look
    ///
    /// What could not be asked is called unknown, with the reason. Exits with 1 if something needs somebody, and says what to do
    /// next. A login of the role ses_ledger_operator is enough.
    Status(StatusArgs),
    /// Did X get my mail? Finds mails by an address, an id or words of the subject
    ///
    /// Newest first, one entry for each mail and recipient: what became of it for whom, and when. Without words: the newest mails.
    /// Exits with 1 if there is none.
    Find(FindArgs),
    /// What happened to this mail? Its whole history in plain words, who must act, and what is missing and why
    ///
    /// Exits with 1 if no mail has this id, and says what is known of it all the same.
    Explain(ExplainArgs),
    /// How are we doing? Deliveries, bounces, complaints, opens and clicks by day, template, campaign, domain or tag
    ///
    /// Counted already by the worker, from events of which each is there once: an answer takes no longer after years. What
    /// happened is told on the day on which it happened, also if SES reported it later; so what is opened today may have been
    /// sent last week. Sent are mails; delivered and bounced (for good) are recipients, in percent of both; complaints in percent of
    /// the delivered; opened and clicked are mails, on the day of the first time, in percent of the sent.
    Figures(FiguresArgs),
    /// May I write to her? Tells who bounced for good, complained, or is on a suppression list of SES, and takes them off
    ///
    /// Exits with 1 if at least one of the addresses is suppressed, and with 0 if all may be written to. The newest report is
    /// told. A complaint about a mail to several recipients of one provider names all of them: each is suppressed perhaps,
    /// which is told and counts against nobody. Applications ask in SQL: SELECT * FROM ses_ledger_suppressed('ana@example.net').
    Suppressed(Box<SuppressedArgs>),
    /// What waits for its mail, and why: list, show, attach or remove orphaned events
    Orphans(Box<OrphansArgs>),
    /// What could not be understood or stored, and why: list, show, replay or remove message bodies
    Quarantine(Box<QuarantineArgs>),
    /// What is in the dead-letter queue, and why: look, have SQS move it back, or write it to a file
    Dlq(Box<DlqArgs>),
    /// Is it set up right? Looks at every hop from SES to the database, changes nothing, and says how to mend what is wrong
    ///
    /// Identity, configuration set, event destination, topic and its key, subscription or EventBridge rule, queue, dead-letter
    /// queue, permissions, database, and the last event of each kind. Each finding has its reason and a command that mends it.
    /// What could not be found out is unknown, never ok. Exits with 1 on an error.
    Doctor(Box<DoctorArgs>),
    /// Does it work from end to end? Sends to the mailbox simulator of SES and waits for the rows; this costs less than a cent
    ///
    /// One mail each to success, bounce, complaint, ooto and suppressionlist of simulator.amazonses.com, which harm no
    /// reputation; there is no other recipient. Writes a log row for each as your application would, waits until a running
    /// worker has stored what SES reports, and prints how long each hop took. Exits with 1 if something has not come in time.
    /// The login has to write log rows and read events (ses_ledger_sender, ses_ledger_operator); the one that migrates also
    /// removes them at the end.
    Smoke(Box<SmokeArgs>),
    /// Let go of what is too old, or see what would go
    Retention(RetentionArgs),
    /// Make the monthly partitions of the coming months, or list all of them
    Partitions(PartitionsArgs),
    Erase(EraseArgs),
    Rebuild(Box<RebuildArgs>),
    /// Prove on this machine, or on your own deployment, that nothing is lost, doubled or wrong
    ///
    /// Makes up mails and what SES reports about them, in every envelope, and knows the truth. Misbehaves like the real world:
    /// copies, reordering, late log rows, unknown mails, poison, foreign messages; a queue that fails, a database that goes
    /// away, workers that are killed. Then compares every row, fact and status with the truth. Exits with 1 on any difference.
    Simulate(Box<SimulateArgs>),
    /// Bring the database's schema up to date, or look at it
    Migrate(MigrateArgs),
    /// Bring mails and events from existing tables of another shape into ours, while everybody goes on
    ///
    /// Log rows become mails, event rows become events, as the worker would have stored them; duplicates collapse, SES ids are
    /// found in the headers where their column is empty, and every row that cannot be taken is told with the reason. It can be
    /// stopped at any moment and goes on where it was; run again, it takes what is new. It needs the login that migrates.
    Adopt(Box<AdoptArgs>),
    Decode(decode::Args),
}

/// Which database, and how to talk to it.
#[derive(Args, Clone)]
pub struct DatabaseArgs {
    /// PostgreSQL database, as postgres://USER:PASSWORD@HOST:5432/NAME; a server that is not on this machine has to prove who it is, by a certificate of a public authority, of Amazon RDS, or of ?sslrootcert=FILE; ?sslmode=disable does without
    #[arg(
        long,
        env,
        value_name = "URL",
        hide_env_values = true,
        required_unless_present = "database_secret",
        help_heading = "Database"
    )]
    pub database_url: Option<String>,

    /// Secret in AWS Secrets Manager, JSON with username and password, and perhaps host, port and dbname: these fill in what the URL leaves out; read again when the login is refused [default: the URL says everything]
    #[arg(long, env, value_name = "ARN", help_heading = "Database")]
    pub database_secret: Option<String>,

    /// What to log in with
    #[arg(long, env, value_enum, default_value_t, help_heading = "Database")]
    pub database_auth: Auth,

    /// What stands between the worker and the server
    #[arg(long, env, value_enum, default_value_t, help_heading = "Database")]
    pub database_pooler: Pooler,

    /// Schema of the tables [default: where the login's search path leads]
    #[arg(long, env, value_name = "NAME", help_heading = "Database")]
    pub database_schema: Option<String>,

    /// Read here, because the roots that are built in take its place in sqlx.
    #[arg(long, env = "PGSSLROOTCERT", value_name = "FILE", hide = true)]
    pub pgsslrootcert: Option<PathBuf>,

    /// Connections to the database; more than two seldom help
    #[arg(long, env, default_value_t = 2, value_name = "N", help_heading = "Database")]
    pub database_connections: u32,

    /// How long a statement may take before the database ends it; shorter than STORE_TIMEOUT
    #[arg(long, env, default_value = "10s", value_parser = duration, value_name = "TIME", help_heading = "Database")]
    pub statement_timeout: Duration,
}

/// Which queues, for those who ask about them.
#[derive(Args, Clone)]
pub struct QueueArgs {
    /// Queues to ask about, as for `run`; several with commas between them [default: none is asked]
    #[arg(long, env, value_delimiter = ',', value_name = "URL", help_heading = "Queue", value_parser = queue)]
    pub queue_url: Vec<QueueAddress>,

    /// AWS region, for queues whose URL does not tell theirs [default: none]
    #[arg(long, env = "AWS_REGION", value_name = "REGION", help_heading = "Queue")]
    pub region: Option<String>,

    /// Where AWS is, for LocalStack and the like [default: AWS, or the queue URL's own host]
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL", help_heading = "Queue")]
    pub endpoint_url: Option<String>,
}

impl QueueArgs {
    /// How to reach each of the queues; none of them is received from.
    pub fn sqs(&self) -> Vec<SqsSettings> {
        let settings = |queue: &QueueAddress| SqsSettings {
            queue_url: queue.url.clone(),
            access: queue.access.clone(),
            region: self.region.clone(),
            endpoint_url: self.endpoint_url.clone(),
            receive_wait: Duration::ZERO,
            visibility_timeout: Duration::ZERO,
        };
        self.queue_url.iter().map(settings).collect()
    }
}

/// How bodies are understood: for those who replay them, as the worker does.
#[derive(Args, Clone)]
pub struct DecodeArgs {
    /// Which part of each event's JSON to keep in the column payload, as for `run`
    #[arg(long, env, value_enum, default_value_t = PayloadPolicy::Event, help_heading = "Pipeline")]
    pub payload: PayloadPolicy,

    /// SES message tag in which a mail carries the uuid of its own log row, as for `run`
    #[arg(long, env, default_value = "email_log_uuid", value_name = "TAG", help_heading = "Pipeline")]
    pub log_id_tag: String,
}

impl DecodeArgs {
    /// What the decode stage takes.
    pub fn settings(&self) -> DecodeSettings {
        DecodeSettings { payload: self.payload, log_id_tag: self.log_id_tag.clone() }
    }
}

/// The page.
#[derive(Args, Clone)]
pub struct SiteArgs {
    /// Database as the page sees it, with a login that may only read, of the role ses_ledger_operator [default: DATABASE_URL's]
    #[arg(long, env, value_name = "URL", hide_env_values = true, help_heading = "Page")]
    pub site_database_url: Option<String>,

    /// What the page asks for, as Authorization: Bearer TOKEN [default: nothing, and then only a loopback address shows it]
    #[arg(long, env, value_name = "TOKEN", hide_env_values = true, help_heading = "Page")]
    pub site_token: Option<String>,

    /// Or the user and the password that a browser asks for [default: none]
    #[arg(long, env, value_name = "NAME", help_heading = "Page")]
    pub site_user: Option<String>,

    /// That user's password [default: none]
    #[arg(long, env, value_name = "PASSWORD", hide_env_values = true, help_heading = "Page")]
    pub site_password: Option<String>,

    /// Show addresses as a…@e….net, and no subjects, links and bodies
    #[arg(long, env, help_heading = "Page")]
    pub site_mask: bool,
}

/// Settings of the worker.
#[derive(Args, Clone)]
pub struct RunArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,

    // As an attribute: a URL in a doc comment would have to be in angle brackets.
    #[arg(
        long,
        env,
        value_delimiter = ',',
        value_name = "URL",
        help_heading = "Queue",
        help = "Queue to receive from, as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME; several with commas between them. \
                Each may end in #profile=NAME, #role=ARN or #role=ARN&external_id=ID: credentials of its own. \
                On Lambda the event source mapping names the queue, and this is not read",
        required_unless_present = "aws_lambda_runtime_api",
        value_parser = queue
    )]
    pub queue_url: Vec<QueueAddress>,

    #[command(flatten)]
    pub worker: WorkerArgs,

    /// Collector that takes traces, as http://HOST:4318 (OTLP over HTTP): a span for each batch, with its store and its delete.
    /// Not read on Lambda [default: no traces]
    #[arg(long, env, value_name = "URL", help_heading = "Probes and metrics", value_parser = collector)]
    pub otlp_endpoint: Option<String>,

    /// What the traces call this worker
    #[arg(long, env, default_value = "ses-ledger", value_name = "NAME", help_heading = "Probes and metrics")]
    pub otlp_service: String,
    #[command(flatten)]
    pub site: SiteArgs,

    /// Try it beside a pipeline that is there: store into the schema ses_ledger_shadow, unless DATABASE_SCHEMA names
    /// another, and take no queue whose name does not end in -shadow
    #[arg(long, env, help_heading = "Pipeline")]
    pub shadow: bool,

    /// Set by Lambda: `run` then answers its invocations.
    #[arg(long, env, hide = true)]
    pub aws_lambda_runtime_api: Option<String>,
}

/// What `run` and `demo` share.
#[derive(Args, Clone)]
pub struct WorkerArgs {
    /// AWS region, for queues whose URL does not tell theirs [default: none]
    #[arg(long, env = "AWS_REGION", value_name = "REGION", help_heading = "Queue")]
    pub region: Option<String>,

    /// Where SQS is, for LocalStack and the like [default: AWS, or the queue URL's own host]
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL", help_heading = "Queue")]
    pub endpoint_url: Option<String>,

    /// Loops that receive, store and delete, for each queue; on a quiet queue only one of them receives, and under load each makes up to six receives at once
    #[arg(long, env, default_value_t = 8, value_name = "N", help_heading = "Pipeline")]
    pub pollers: usize,

    /// Events to store in one transaction, 1 to 10000; 200 to 1000 is the range to work in
    #[arg(long, env, default_value_t = 500, value_name = "EVENTS", help_heading = "Pipeline")]
    pub batch_size: usize,

    /// How long the oldest message may wait for its batch to fill
    #[arg(long, env, default_value = "150ms", value_parser = duration, value_name = "TIME", help_heading = "Pipeline")]
    pub batch_age: Duration,

    /// Messages in hand at the same time, for each queue, 10 to 120000; every 2 KiB of a body count as one. SQS allows about 120000 for all receivers of a queue
    #[arg(long, env, default_value_t = 4_000, value_name = "MESSAGES", help_heading = "Pipeline")]
    pub in_flight: usize,

    /// How long a receive waits on an empty queue, in whole seconds, 1s to 20s
    #[arg(long, env, default_value = "20s", value_parser = duration, value_name = "TIME", help_heading = "Queue")]
    pub receive_wait: Duration,

    /// How long a received message stays hidden, in whole seconds, 2s to 12h; extended while the database is away
    #[arg(long, env, default_value = "120s", value_parser = duration, value_name = "TIME", help_heading = "Queue")]
    pub visibility_timeout: Duration,

    /// How long one attempt to store a batch may take
    #[arg(long, env, default_value = "15s", value_parser = duration, value_name = "TIME", help_heading = "Pipeline")]
    pub store_timeout: Duration,

    /// How long deleting a stored batch may take, with all attempts
    #[arg(long, env, default_value = "20s", value_parser = duration, value_name = "TIME", help_heading = "Queue")]
    pub delete_budget: Duration,

    /// After SIGTERM: how long to go on with what is in hand; the rest is given back to the queue
    #[arg(long, env, default_value = "60s", value_parser = duration, value_name = "TIME", help_heading = "Pipeline")]
    pub shutdown_grace: Duration,

    /// How often to look whether the mails of parked events have appeared
    #[arg(long, env, default_value = "10s", value_parser = duration, value_name = "TIME", help_heading = "Pipeline")]
    pub sweep_interval: Duration,

    /// How often to count the figures on, at least 1s; off: not at all
    #[arg(long, env, default_value = "1m", value_parser = duration_or_off, value_name = "TIME", help_heading = "Figures")]
    pub figures_interval: OrOff,

    /// Tags of mails to count figures by, at most eight with commas between them; those that were stored before are counted by them with `ses-ledger figures rebuild` [default: none]
    #[arg(long, env, value_delimiter = ',', value_name = "NAMES", help_heading = "Figures", value_parser = figures_tag)]
    pub figures_tags: Vec<String>,

    #[command(flatten)]
    pub retention: Retention,

    /// Which part of each event's JSON to keep in the column payload
    #[arg(long, env, value_enum, default_value_t = PayloadPolicy::Event, help_heading = "Pipeline")]
    pub payload: PayloadPolicy,

    /// SES message tag in which a mail carries the uuid of its own log row
    #[arg(long, env, default_value = "email_log_uuid", value_name = "TAG", help_heading = "Pipeline")]
    pub log_id_tag: String,

    /// Where to serve /livez, /readyz, /metrics and the page; port 0 takes a free one
    #[arg(long, env, default_value = "127.0.0.1:9464", value_name = "ADDRESS", help_heading = "Probes and metrics")]
    pub http_address: SocketAddr,

    /// Where metrics go beside /metrics
    #[arg(long, env, value_enum, default_value_t, help_heading = "Probes and metrics")]
    pub metrics: Export,

    /// How often to write metrics for CloudWatch; on Lambda it is after each invocation
    #[arg(long, env, default_value = "60s", value_parser = duration, value_name = "TIME", help_heading = "Probes and metrics")]
    pub emf_interval: Duration,

    /// CloudWatch's namespace for these metrics
    #[arg(long, env, default_value = "ses-ledger", value_name = "NAME", help_heading = "Probes and metrics")]
    pub emf_namespace: String,

    /// Their only dimension, Service
    #[arg(long, env, default_value = "ses-ledger", value_name = "NAME", help_heading = "Probes and metrics")]
    pub emf_service: String,

    /// Set by ECS, Lambda and most containers: what a worker calls itself in its heartbeat.
    #[arg(long, env, hide = true)]
    pub ecs_container_metadata_uri_v4: Option<String>,
    #[arg(long, env, hide = true)]
    pub aws_lambda_function_name: Option<String>,
    #[arg(long, env, hide = true)]
    pub hostname: Option<String>,
}

/// How the names of queues end that a shadow may take from.
pub const SHADOW_SUFFIX: &str = "-shadow";

/// Where a shadow stores, unless it is told otherwise.
const SHADOW_SCHEMA: &str = "ses_ledger_shadow";

/// More tags than that would make more figures than anybody reads.
const MOST_TAGS: usize = 8;

/// How long the release of what could not be stored may take at the end of the grace period.
pub const RELEASE_BUDGET: Duration = Duration::from_secs(5);

impl Cli {
    /// Reads the command line and the environment. What is wrong with them ends the program, with 64.
    pub fn read() -> Result<Self, u8> {
        let mut cli = Self::try_parse().map_err(|e| {
            let _ = e.print();
            if e.use_stderr() { EXIT_USAGE } else { 0 }
        })?;
        let checked = match &mut cli.command {
            Command::Run(args) => args.check(),
            Command::Serve(args) => args.check(),
            Command::Demo(args) => args.worker.check(),
            Command::Orphans(args) => args.check(),
            Command::Quarantine(args) => args.check(),
            Command::Dlq(args) => args.check(),
            Command::Simulate(args) => args.check(),
            Command::Doctor(args) => args.check(),
            Command::Smoke(args) => args.check(),
            Command::Migrate(args) => args.check(),
            Command::Status(args) => args.database.check(),
            Command::Find(args) => args.check(),
            Command::Suppressed(args) => args.check(),
            Command::Explain(args) => args.check(),
            Command::Figures(args) => args.check(),
            Command::Retention(args) => args.check(),
            Command::Partitions(args) => args.database.check(),
            Command::Erase(args) => args.check(),
            Command::Rebuild(args) => args.check(),
            Command::Adopt(args) => args.check(),
            Command::Decode(_) | Command::Health(_) => Ok(()),
        };
        checked.map_err(|wrong| {
            eprintln!("error: {wrong}\n\nFor more information, try '--help'.");
            EXIT_USAGE
        })?;
        Ok(cli)
    }
}

impl Command {
    /// What is logged if nobody says.
    pub fn usual_log(&self) -> &'static str {
        match self {
            // Its view is what the user looks at.
            Self::Demo(_) | Self::Doctor(_) | Self::Smoke(_) | Self::Simulate(_) => "error",
            _ => "info",
        }
    }

    /// Where traces go, if anywhere.
    pub fn traces(&self) -> Option<TraceSettings> {
        match self {
            Self::Run(args) => args.traces(),
            _ => None,
        }
    }
}

impl RunArgs {
    /// Where traces go, if anywhere. A function sleeps between invocations, and so would they.
    fn traces(&self) -> Option<TraceSettings> {
        let endpoint = self.otlp_endpoint.clone().filter(|_| self.aws_lambda_runtime_api.is_none())?;
        Some(TraceSettings { endpoint, service: self.otlp_service.clone() })
    }

    fn check(&mut self) -> Result<(), String> {
        self.database.check()?;
        self.worker.check()?;
        self.site.check()?;
        if self.shadow {
            self.database.database_schema.get_or_insert_with(|| SHADOW_SCHEMA.to_owned());
            if let Some(queue) = self.queue_url.iter().find(|queue| !queue.url.ends_with(SHADOW_SUFFIX)) {
                return Err(format!(
                    "SHADOW (--shadow) takes no queue whose name does not end in {SHADOW_SUFFIX}: what it takes from {} would be \
                     missing in the pipeline that is there",
                    queue.url
                ));
            }
        }
        if self.database.statement_timeout.is_zero() {
            return Err(
                "STATEMENT_TIMEOUT has to be longer than zero, which the database would read as no limit".to_owned()
            );
        }
        let (server, client) = (self.database.statement_timeout, self.worker.store_timeout);
        if server >= client {
            return Err(format!(
                "STATEMENT_TIMEOUT ({server:?}) has to be shorter than STORE_TIMEOUT ({client:?}): \
                 else the database would go on with what we have given up"
            ));
        }
        Ok(())
    }
}

impl SiteArgs {
    /// The page at this address, which asks the queues how they do.
    pub fn settings(&self, address: SocketAddr, database: &DatabaseArgs, queues: Vec<SqsSettings>) -> SiteSettings {
        let database = match given(&self.site_database_url) {
            Some(url) => PostgresSettings { url: Some(url), secret: None, ..database.reader() },
            None => database.reader(),
        };
        let keys =
            Keys { token: given(&self.site_token), basic: given(&self.site_user).zip(given(&self.site_password)) };
        SiteSettings { ip: address.ip(), database, queues, keys, mask: self.site_mask }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if given(&self.site_user).is_some() != given(&self.site_password).is_some() {
            return Err("SITE_USER and SITE_PASSWORD belong together: set both, or none".to_owned());
        }
        let Some(url) = given(&self.site_database_url) else { return Ok(()) };
        let in_our_name =
            |e: String| e.replace("DATABASE_URL (--database-url)", "SITE_DATABASE_URL (--site-database-url)");
        check_database_url(&url, false).map_err(in_our_name)?;
        let settings = PostgresSettings::new(&url);
        if !settings.is_readable() {
            return Err(
                "SITE_DATABASE_URL (--site-database-url) cannot be read; special characters in the password are \
                        written like %40 (@) and %23 (#)"
                    .to_owned(),
            );
        }
        settings.check_tls().map_err(|e| format!("SITE_DATABASE_URL (--site-database-url): {e}"))
    }
}

/// A variable without a value says nothing: templates cannot always leave it out.
fn given(value: &Option<String>) -> Option<String> {
    value.clone().filter(|value| !value.is_empty())
}

impl DatabaseArgs {
    /// How to reach the database.
    pub fn settings(&self) -> PostgresSettings {
        PostgresSettings {
            url: given(&self.database_url),
            secret: given(&self.database_secret),
            auth: self.database_auth,
            pooler: self.database_pooler,
            root_cert: self.pgsslrootcert.clone().filter(|file| !file.as_os_str().is_empty()),
            connections: self.database_connections,
            statement_timeout: self.statement_timeout,
            schema: given(&self.database_schema),
            read_only: false,
        }
    }

    /// How to ask it, without being able to change anything.
    pub fn reader(&self) -> PostgresSettings {
        PostgresSettings { read_only: true, ..self.settings() }
    }

    /// For work that holds a lock of its session: so nobody else does the same meanwhile.
    pub(crate) fn check_own_session(&self, what: &str) -> Result<(), String> {
        match self.database_pooler {
            Pooler::None => Ok(()),
            Pooler::Transaction => Err(format!(
                "{what} needs a session of its own, which DATABASE_POOLER=transaction does not give: name the server itself \
                 in DATABASE_URL, and leave out DATABASE_POOLER"
            )),
        }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let settings = self.settings();
        match (&settings.url, &settings.secret) {
            (None, None) => {
                return Err("DATABASE_URL (--database-url) or DATABASE_SECRET has to name a database".into());
            }
            (Some(url), secret) => check_database_url(url, secret.is_some())?,
            (None, Some(_)) => {}
        }
        if !settings.is_readable() {
            return Err(
                "DATABASE_URL (--database-url) cannot be read; special characters in the password are written like %40 (@) \
                 and %23 (#)"
                    .to_owned(),
            );
        }
        settings.check_tls().map_err(|e| format!("DATABASE_URL (--database-url): {e}"))?;
        if self.database_connections == 0 {
            return Err("DATABASE_CONNECTIONS has to be at least 1".to_owned());
        }
        match &settings.schema {
            Some(schema) if !is_plain_name(schema) => Err(format!(
                "DATABASE_SCHEMA ({schema}) has to be a name of lower-case letters, digits and underscores"
            )),
            _ => Ok(()),
        }
    }
}

impl WorkerArgs {
    /// Sizes and times of the path.
    pub fn pipeline(&self) -> PipelineSettings {
        PipelineSettings {
            pollers: self.pollers,
            batch_size: self.batch_size,
            batch_age: self.batch_age,
            in_flight: self.in_flight,
            receive_wait: self.receive_wait,
            visibility_timeout: self.visibility_timeout,
            store_timeout: self.store_timeout,
            delete_budget: self.delete_budget,
            decode: DecodeSettings { payload: self.payload, log_id_tag: self.log_id_tag.clone() },
        }
    }

    /// What to do beside the queue.
    pub fn upkeep(&self) -> UpkeepSettings {
        UpkeepSettings {
            sweep_interval: self.sweep_interval,
            figures_interval: self.figures_interval.0,
            figures_tags: rollup::chosen_tags(&self.figures_tags),
            retention: self.retention,
        }
    }

    /// What the worker calls itself in its heartbeat.
    pub fn identity(&self) -> Identity {
        let retention = self.retention;
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        if let Some(name) = given(&self.aws_lambda_function_name) {
            return Identity { name, runtime: Runtime::Lambda, retention };
        }
        let runtime = if self.ecs_container_metadata_uri_v4.is_some() { Runtime::Ecs } else { Runtime::Other };
        Identity { name: given(&self.hostname).unwrap_or_else(pulse::this_host), runtime, retention }
    }

    /// What to write for CloudWatch, if anything.
    pub fn emf(&self) -> Option<EmfSettings> {
        let (namespace, service) = (self.emf_namespace.clone(), self.emf_service.clone());
        (self.metrics == Export::Emf).then_some(EmfSettings { interval: self.emf_interval, namespace, service })
    }

    /// How to reach one of the queues.
    pub fn sqs(&self, queue: &QueueAddress) -> SqsSettings {
        SqsSettings {
            queue_url: queue.url.clone(),
            access: queue.access.clone(),
            region: self.region.clone(),
            endpoint_url: self.endpoint_url.clone(),
            receive_wait: self.receive_wait,
            visibility_timeout: self.visibility_timeout,
        }
    }

    /// Settings that only make sense together. Each message names both.
    fn check(&self) -> Result<(), String> {
        let whole = |time: Duration| time.subsec_nanos() == 0;
        let worst = self.batch_age + self.store_timeout + self.delete_budget;
        let leaving = self.receive_wait + self.store_timeout + RELEASE_BUDGET;
        let rules = [
            (self.pollers == 0, "POLLERS has to be at least 1".to_owned()),
            (self.batch_size == 0 || self.batch_size > 10_000, "BATCH_SIZE has to be from 1 to 10000".to_owned()),
            (self.in_flight < 10 || self.in_flight > 120_000, "IN_FLIGHT has to be from 10 to 120000".to_owned()),
            (
                self.in_flight < self.batch_size,
                format!(
                    "IN_FLIGHT ({}) is less than BATCH_SIZE ({}): no batch could fill",
                    self.in_flight, self.batch_size
                ),
            ),
            (
                self.receive_wait > Duration::from_secs(20) || self.receive_wait.is_zero() || !whole(self.receive_wait),
                "RECEIVE_WAIT has to be whole seconds, from 1s to 20s".to_owned(),
            ),
            (
                self.visibility_timeout > Duration::from_secs(12 * 3600)
                    || self.visibility_timeout < Duration::from_secs(2)
                    || !whole(self.visibility_timeout),
                "VISIBILITY_TIMEOUT has to be whole seconds, from 2s to 12h".to_owned(),
            ),
            (
                worst >= self.visibility_timeout,
                format!(
                    "VISIBILITY_TIMEOUT ({:?}) has to be longer than BATCH_AGE ({:?}) + STORE_TIMEOUT ({:?}) + DELETE_BUDGET ({:?}) \
                     = {worst:?}: a message would come back while it is being handled",
                    self.visibility_timeout, self.batch_age, self.store_timeout, self.delete_budget
                ),
            ),
            (
                self.delete_budget * 2 > self.visibility_timeout,
                format!(
                    "VISIBILITY_TIMEOUT ({:?}) has to be at least twice DELETE_BUDGET ({:?}): after an outage, that much of it \
                     is sure to be left when deleting begins",
                    self.visibility_timeout, self.delete_budget
                ),
            ),
            (
                leaving >= self.shutdown_grace,
                format!(
                    "SHUTDOWN_GRACE ({:?}) has to be longer than RECEIVE_WAIT ({:?}) + STORE_TIMEOUT ({:?}) + {RELEASE_BUDGET:?} \
                     to give messages back = {leaving:?}: a started receive could not be finished",
                    self.shutdown_grace, self.receive_wait, self.store_timeout
                ),
            ),
            (self.delete_budget.is_zero(), "DELETE_BUDGET has to be longer than zero".to_owned()),
            (self.sweep_interval.is_zero(), "SWEEP_INTERVAL has to be longer than zero".to_owned()),
            (
                self.figures_interval.0.is_some_and(|every| every < Duration::from_secs(1)),
                "FIGURES_INTERVAL has to be at least 1s, or off".to_owned(),
            ),
            (self.figures_tags.len() > MOST_TAGS, format!("FIGURES_TAGS has to name at most {MOST_TAGS} tags")),
            (self.emf_interval < Duration::from_secs(1), "EMF_INTERVAL has to be at least 1s".to_owned()),
        ];
        rules.into_iter().find(|(broken, _)| *broken).map_or(Ok(()), |(_, why)| Err(why))?;
        self.retention.check()
    }
}

/// What the process finds around it, for those who start other programs.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Where programs are looked for.
    pub path: OsString,
    /// Where temporary folders go.
    pub temp_dir: PathBuf,
    /// Where downloads are kept for the next time.
    pub cache_dir: PathBuf,
}

impl Surroundings {
    /// Reads `PATH`, `TMPDIR`, and `XDG_CACHE_HOME` or `HOME`.
    pub fn read() -> Self {
        let home_cache = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let temp_dir = std::env::temp_dir();
        Self {
            path: std::env::var_os("PATH").unwrap_or_default(),
            cache_dir: std::env::var_os("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .filter(|dir| dir.is_absolute())
                .or_else(home_cache)
                .unwrap_or_else(|| temp_dir.clone()),
            temp_dir,
        }
    }
}

/// A queue and the credentials that it takes.
#[derive(Clone, Debug)]
pub struct QueueAddress {
    pub url: String,
    pub access: Access,
}

impl QueueAddress {
    /// A queue that takes the credentials that are found anyhow.
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), access: Access::Default }
    }
}

/// Reads `URL`, `URL#profile=NAME`, `URL#role=ARN` and `URL#role=ARN&external_id=ID`.
pub(crate) fn queue(text: &str) -> Result<QueueAddress, String> {
    let (url, access) = text.split_once('#').unwrap_or((text, ""));
    if !is_queue_url(url) {
        return Err("QUEUE_URL has to look like https://sqs.REGION.amazonaws.com/ACCOUNT/NAME; it is the queue's URL, not its name \
                    or ARN"
            .to_owned());
    }
    let mut access: BTreeMap<_, _> = access.split('&').filter_map(|part| part.split_once('=')).collect();
    let mut take = |key| access.remove(key).filter(|value| !value.is_empty()).map(str::to_owned);
    let found = match (take("profile"), take("role"), take("external_id")) {
        (None, None, None) => Some(Access::Default),
        (Some(name), None, None) => Some(Access::Profile(name)),
        (None, Some(arn), external_id) if arn.starts_with("arn:") => Some(Access::Role { arn, external_id }),
        _ => None,
    };
    let all_read = access.is_empty() && (text.contains('=') || !text.contains('#'));
    let access = found.filter(|_| all_read);
    let access = access.ok_or("after the # QUEUE_URL has to say profile=NAME, role=ARN or role=ARN&external_id=ID")?;
    Ok(QueueAddress { url: url.to_owned(), access })
}

pub(crate) fn check_database_url(url: &str, has_secret: bool) -> Result<(), String> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    match rest {
        None => {
            Err("DATABASE_URL (--database-url) has to look like postgres://USER:PASSWORD@HOST:5432/NAME".to_owned())
        }
        Some(rest) if !has_secret && !rest.contains('@') && !rest.contains("user=") => {
            Err("DATABASE_URL (--database-url) names no user: postgres://USER:PASSWORD@HOST:5432/NAME".to_owned())
        }
        Some(_) => Ok(()),
    }
}

/// PostgreSQL takes it without quotes, as it stands.
fn is_plain_name(name: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.len() < 64 && name.chars().all(letters) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Host and name are there, at least. A queue of an emulator may have more or less in between.
fn is_queue_url(url: &str) -> bool {
    let place = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    place
        .and_then(|place| place.split_once('/'))
        .is_some_and(|(host, path)| !host.is_empty() && path.split('/').all(|part| !part.is_empty()))
}

/// Reads the address of a collector, which may have a path in front of OTLP's own.
fn collector(text: &str) -> Result<String, String> {
    let is_http = text.parse::<url::Url>().is_ok_and(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
    is_http.then(|| text.to_owned()).ok_or_else(|| "OTLP_ENDPOINT has to look like http://127.0.0.1:4318".to_owned())
}

/// Reads a moment: `2026-11-21`, `2026-11-21T15:30:00Z`, or how long ago it is, like `2d`. Dates are those of UTC.
pub(crate) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    let date = || time::Date::parse(text, format_description!("[year]-[month]-[day]")).ok();
    let ago = || OffsetDateTime::now_utc().checked_sub(duration(text).ok()?.try_into().ok()?);
    let moment =
        OffsetDateTime::parse(text, &Rfc3339).ok().or_else(|| Some(date()?.midnight().assume_utc())).or_else(ago);
    moment
        .ok_or_else(|| format!("{text:?} is no moment: write 2026-11-21, 2026-11-21T15:30:00Z, or 2d for two days ago"))
}

/// A length of time, or `off`.
#[derive(Clone, Copy, Debug)]
pub struct OrOff(pub Option<Duration>);

fn duration_or_off(text: &str) -> Result<OrOff, String> {
    match text {
        "off" => Ok(OrOff(None)),
        text => duration(text).map(|time| OrOff(Some(time))),
    }
}

/// The name of a tag that mails are counted by. It becomes part of a key.
pub(crate) fn figures_tag(text: &str) -> Result<String, String> {
    match text.len() > 100 {
        true => Err("the name of a tag that mails are counted by has at most 100 bytes".to_owned()),
        false => Ok(text.trim().to_owned()),
    }
}

/// Reads a length of time: a number with one of the units ms, s, m, h, d.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time: write 500ms, 20s, 5m or 2h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let millis = match text[digits..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}
