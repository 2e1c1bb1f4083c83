//! Reads what Linux tells under /proc. Texts in, numbers out.

use std::time::Duration;

/// The kernel counts CPU time in hundredths of a second, whatever its own clock does.
const TICK: Duration = Duration::from_millis(10);

/// CPU time in `/proc/PID/stat`: user and system, finished threads included.
pub(crate) fn cpu(stat: &str) -> Option<Duration> {
    sum_of(stat, &[11, 12])
}

/// The same, with that of all children that have ended and were waited for.
pub(crate) fn cpu_with_ended_children(stat: &str) -> Option<Duration> {
    sum_of(stat, &[11, 12, 13, 14])
}

/// Who started the process of this `/proc/PID/stat`.
pub(crate) fn parent(stat: &str) -> Option<u32> {
    fields(stat)?.get(1)?.parse().ok()
}

/// The most memory that the process of this `/proc/PID/status` ever had, in KiB.
pub(crate) fn peak_memory(status: &str) -> Option<u64> {
    kib(status, "VmHWM:")
}

/// What `/proc/meminfo` says can still be had, in KiB.
pub(crate) fn available_memory(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemAvailable:")
}

/// CPU time that all processors together spent on anything, of `/proc/stat`; time stolen by the host counts as well.
pub(crate) fn busy(stat: &str) -> Option<Duration> {
    let mut ticks = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(str::parse::<u32>);
    let mut next = || ticks.next()?.ok();
    let (user, nice, system, _idle, _waiting) = (next()?, next()?, next()?, next()?, next()?);
    let (interrupts, soft_interrupts, stolen) = (next()?, next()?, next()?);
    Some(TICK * (user + nice + system + interrupts + soft_interrupts + stolen))
}

/// The load of the last minute, of `/proc/loadavg`.
pub(crate) fn load(loadavg: &str) -> Option<f64> {
    loadavg.split_whitespace().next()?.parse().ok()
}

/// What the processor calls itself, of `/proc/cpuinfo`.
pub(crate) fn processor(cpuinfo: &str) -> Option<&str> {
    cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name.trim())
}

fn sum_of(stat: &str, which: &[usize]) -> Option<Duration> {
    let fields = fields(stat)?;
    let ticks: Option<u32> = which.iter().map(|n| fields.get(*n)?.parse::<u32>().ok()).sum();
    Some(TICK * ticks?)
}

/// The fields after the name, which is in parentheses and may hold anything.
fn fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix(" kB")?.parse().ok()
}
