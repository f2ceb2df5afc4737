//! Metrics of the process itself, with the names and units that all Prometheus client libraries use ("Writing client
//! libraries", "Process metrics").

use std::fs;
use std::sync::{Mutex, PoisonError};

use prometheus::{Counter, IntGauge};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::series::{SeriesRegistry, saturating_i64};

/// Series of the process. Read from `/proc` at each [`refresh`](Self::refresh).
#[derive(Debug)]
pub(super) struct ProcessSeries {
    /// Locked while the counter is updated, so that two readers do not count the same time twice.
    cpu: Mutex<Counter>,
    open_files: IntGauge,
    open_files_max: IntGauge,
    virtual_memory: IntGauge,
    resident_memory: IntGauge,
    start: IntGauge,
    threads: IntGauge,
}

/// Figures of `/proc/self/stat` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessStat {
    /// CPU time in user and kernel mode, in clock ticks.
    cpu_ticks: u64,
    threads: u64,
    /// Start of the process in clock ticks after the start of the system.
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl ProcessSeries {
    pub(super) fn new(series: &SeriesRegistry) -> Self {
        Self {
            cpu: series
                .float_counter("process_cpu_seconds_total", "User and system CPU time in seconds.")
                .into(),
            open_files: series.gauge("process_open_fds", "Open file descriptors."),
            open_files_max: series.gauge("process_max_fds", "Limit on open file descriptors."),
            virtual_memory: series.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes."),
            resident_memory: series.gauge("process_resident_memory_bytes", "Resident memory size in bytes."),
            start: series
                .gauge("process_start_time_seconds", "Start time of the process in seconds since 1970."),
            threads: series.gauge("process_threads", "Threads of the process."),
        }
    }

    /// Reads the current figures. A figure that cannot be read keeps its value.
    pub(super) fn refresh(&self) {
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is the open folder itself.
            self.open_files.set(saturating_i64((files.count() as u64).saturating_sub(1)));
        }
        let limit = getrlimit(Resource::Nofile).current;
        self.open_files_max.set(limit.map_or(i64::MAX, saturating_i64));
        if let Some(stat) = ProcessStat::current() {
            self.set(stat);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "CPU time in ticks is far below 2^52")]
    fn set(&self, stat: ProcessStat) {
        let ticks = clock_ticks_per_second().max(1);
        let cpu = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        cpu.inc_by((stat.cpu_ticks as f64 / ticks as f64 - cpu.get()).max(0.0));
        drop(cpu);
        self.threads.set(saturating_i64(stat.threads));
        self.virtual_memory.set(saturating_i64(stat.virtual_bytes));
        self.resident_memory.set(saturating_i64(stat.resident_pages.saturating_mul(page_size() as u64)));
        if self.start.get() == 0
            && let Some(boot) = fs::read_to_string("/proc/stat").ok().as_deref().and_then(boot_time)
        {
            self.start.set(saturating_i64(boot.saturating_add(stat.start_ticks / ticks)));
        }
    }
}

/// Returns the resident memory of the process in bytes; 0 if it cannot be read.
pub fn resident_memory() -> u64 {
    ProcessStat::current().map_or(0, |stat| stat.resident_pages.saturating_mul(page_size() as u64))
}

impl ProcessStat {
    fn current() -> Option<Self> {
        fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Self::parse)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the name of the program, which may contain spaces and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        // proc(5) counts from 1, and the first of these is field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// Returns the start of the system in seconds since 1970, from `/proc/stat`.
fn boot_time(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_after_the_name_of_the_program() {
        let text = "17 (a) b ) S 1 17 17 0 -1 4194560 900 0 3 0 250 50 0 0 20 0 9 0 1234 4096000 321 18446744073709551615 1";
        let stat = ProcessStat {
            cpu_ticks: 300,
            threads: 9,
            start_ticks: 1234,
            virtual_bytes: 4_096_000,
            resident_pages: 321,
        };
        assert_eq!(ProcessStat::parse(text), Some(stat));
        for bad in ["", "17 (a) S", "17 a S 1 17 17 0", &text.replace("321", "x")] {
            assert_eq!(ProcessStat::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn boot_time_is_found() {
        assert_eq!(boot_time("cpu 1 2 3\nbtime 1796042978\nprocesses 7\n"), Some(1_796_042_978));
        assert_eq!(boot_time("cpu 1 2 3\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn figures_are_those_of_this_process() {
        let process = ProcessSeries::new(&SeriesRegistry::default());
        let file = fs::File::open("/proc/self/stat").expect("this process");
        process.refresh();
        let files = process.open_files.get();
        assert!(files > 2 && process.open_files_max.get() >= files);
        assert!(process.threads.get() > 0 && process.resident_memory.get() > 1 << 20);
        assert!(process.virtual_memory.get() >= process.resident_memory.get());
        assert!(process.start.get() > 1_700_000_000);
        let cpu = process.cpu.lock().expect("no panic").get();
        process.refresh();
        assert!(process.cpu.lock().expect("no panic").get() >= cpu);
        drop(file);
    }
}
