//! The real database behind a script of faults. Each of its calls is over before Tokio's clock moves on, so that a
//! worker on paused time can store in it.

use std::{
    future::pending,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use ses_ledger::{
    local::story::{LogRow, Truth},
    orphans,
    pipeline::{
        Store, StoreError, Verdict,
        batch::{Arrival, Quarantined},
    },
    postgres::{
        Postgres, PostgresSettings,
        audit::{self, Differences},
    },
};
use tokio::{runtime::Runtime, time::sleep};

use crate::{
    database::{self, Database},
    doubles::{Fault, MemoryStore},
};

/// A database for one test. Its clones are the same.
#[derive(Clone)]
pub(crate) struct RealStore {
    /// What was stored by all that the worker can know: a queue asks it whether something may be deleted. It also has
    /// the script.
    pub(crate) known: MemoryStore,
    database: Arc<Database>,
    /// Looks at what is stored, by a connection that is not cut: a new one would need a second to know all partitions.
    auditor: Postgres,
    auditor_pids: String,
    runtime: Arc<Runtime>,
    /// Places the cuts differently in time.
    cuts: Arc<AtomicU64>,
}

/// Those of a store, not those of the test itself.
const CONNECTIONS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ses-ledger'";

impl RealStore {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime can be had");
        let (database, auditor, auditor_pids) = runtime.block_on(async {
            let database = database::fresh().await;
            let url = database.url.clone();
            let statement_timeout = Duration::from_secs(20);
            let settings = PostgresSettings { connections: 1, statement_timeout, ..PostgresSettings::new(&url) };
            let auditor = Postgres::new(&settings).expect("the URL is well formed");
            audit::compare(&auditor, &Truth::default()).await.expect("the tables are there");
            let pids = database.texts(&format!("SELECT pid::text {CONNECTIONS}")).await;
            (Arc::new(database), auditor, pids.join(","))
        });
        let (known, runtime) = (MemoryStore::default(), Arc::new(runtime));
        Self { known, database, auditor, auditor_pids, runtime, cuts: Arc::default() }
    }

    /// The same database, with nothing in it and another script.
    pub(crate) fn emptied(&self) -> Self {
        let tables = ["email_events", "orphaned_events", "quarantined_messages", "email_logs"];
        let delete = tables.map(|table| format!("DELETE FROM {table};")).concat();
        self.wait(self.database.run(&delete));
        Self { known: MemoryStore::default(), ..self.clone() }
    }

    pub(crate) fn write_log(&self, row: &LogRow) {
        self.known.write_log(row);
        self.again_and_again(|| self.database.try_to_write_log(row));
    }

    pub(crate) fn sweep(&self) {
        self.known.sweep();
        self.again_and_again(|| async { Ok(orphans::sweep_all(&self.database.store()).await.map(drop)?) });
    }

    /// Compares every row, every fact and every status. A poison that was delivered again was also seen again: how often,
    /// only the queue knows, so of the quarantine every body has to be there, and no other.
    pub(crate) fn differences(&self, truth: &Truth) -> Differences {
        self.wait(async {
            let seen =
                self.database.number("SELECT coalesce(sum(times_seen), 0)::bigint FROM quarantined_messages").await;
            let mut truth = truth.clone();
            let least = truth.rejected_leaves.values().sum::<usize>();
            if let Some(count) = truth.rejected_leaves.values_mut().next() {
                *count += (seen as usize).saturating_sub(least);
            }
            audit::compare(&self.auditor, &truth).await.expect("the tables are there")
        })
    }

    pub(crate) fn quarantine(&self) -> Vec<String> {
        let all = "SELECT convert_from(body, 'UTF8') FROM quarantined_messages";
        self.wait(self.database.texts(all))
    }

    /// The connections may have been cut a moment ago.
    fn again_and_again<F: Future<Output = anyhow::Result<()>> + Send>(&self, work: impl Fn() -> F) {
        let mut outcomes = (0..20).map(|_| self.wait(work()));
        assert!(outcomes.any(|outcome| outcome.is_ok()), "the database does not come back");
    }

    /// Runs on a runtime with a clock of its own; here nothing moves meanwhile.
    fn wait<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| self.runtime.block_on(work));
            waiting.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    async fn insert_for_real(
        &self,
        arrivals: &[Arrival],
        quarantined: &[Quarantined],
    ) -> Result<Vec<Verdict>, StoreError> {
        let verdicts = self.database.store().insert(arrivals, quarantined).await?;
        self.known.insert_now(arrivals, quarantined)?;
        Ok(verdicts)
    }

    /// Cuts every connection of the store, like a server that goes down, up to ten ms from now.
    async fn cut(&self) {
        let n = self.cuts.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_micros(n * 137 % 10_000)).await;
        let spared = &self.auditor_pids;
        let cut = format!("SELECT count(pg_terminate_backend(pid)) {CONNECTIONS} AND pid <> ALL ('{{{spared}}}')");
        self.database.number(&cut).await;
    }
}

impl Store for RealStore {
    async fn insert(&self, arrivals: &[Arrival], quarantined: &[Quarantined]) -> Result<Vec<Verdict>, StoreError> {
        let insert = self.insert_for_real(arrivals, quarantined);
        match self.known.next_fault() {
            Fault::None => self.wait(insert),
            // Whoever finds a connection that is cut gets an error, or another connection.
            Fault::Reject => self.wait(async {
                self.cut().await;
                insert.await
            }),
            // Cut while it works: nobody knows whether it was done.
            Fault::LoseAnswer => self.wait(async {
                let (answer, ()) = tokio::join!(insert, self.cut());
                answer?;
                Err(StoreError::Transient(anyhow::anyhow!("a planted loss of an answer")))
            }),
            Fault::Hang => pending().await,
        }
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.wait(async { self.database.store().ping().await })
    }
}
