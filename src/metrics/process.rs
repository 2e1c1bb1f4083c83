//! What the process itself takes, by the names that Prometheus's own clients have for it. Where there is no `/proc`, nothing
//! is said.

use std::{fmt, fs, time::SystemTime};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Clock ticks in a second, as Linux tells them to every process.
const TICKS: f64 = 100.0;

/// Looks when it is asked.
#[derive(Debug)]
pub(super) struct Process {
    started: SystemTime,
}

impl Process {
    pub(super) fn new() -> Self {
        Self { started: SystemTime::now() }
    }
}

impl Collector for Process {
    fn encode(&self, mut page: DescriptorEncoder<'_>) -> fmt::Result {
        let since_1970 = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        write(&mut page, "process_start_time_seconds", "When it was started", &ConstGauge::new(since_1970))?;
        if let Some(seconds) = cpu_seconds() {
            write(
                &mut page,
                "process_cpu_seconds",
                "Processor time, in and out of the kernel",
                &ConstCounter::new(seconds),
            )?;
        }
        if let Some(bytes) = resident_bytes() {
            write(&mut page, "process_resident_memory_bytes", "Resident memory", &ConstGauge::new(bytes))?;
        }
        if let Some(files) = open_files() {
            write(&mut page, "process_open_fds", "Open files and connections", &ConstGauge::new(files))?;
        }
        Ok(())
    }
}

fn write(page: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
    metric.encode(page.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Its second field is the program's name in brackets, which may hold spaces. The 14th and 15th are what we look for.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))?;
    Some(kibibytes.parse::<u64>().ok()? * 1024)
}

fn open_files() -> Option<u64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}
