//! What a process used, as the kernel counts it.

use std::fs;
use std::io;

/// A group of processes that are measured as one, such as nginx's master and worker.
#[derive(Clone, Default)]
pub struct Group(Vec<u32>);

impl Group {
    pub fn parse(text: &str) -> Option<Self> {
        text.split(',').map(|pid| pid.parse().ok()).collect::<Option<_>>().map(Self)
    }

    /// Nanoseconds on a CPU of all threads since they started.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        self.0.iter().map(|&pid| process_cpu_ns(pid)).sum()
    }

    /// Resident and proportional set size, in KiB.
    pub fn memory_kib(&self) -> io::Result<Memory> {
        let mut sum = Memory::default();
        for pid in &self.0 {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            sum.rss_kib += field(&text, "Rss:")?;
            sum.pss_kib += field(&text, "Pss:")?;
        }
        Ok(sum)
    }
}

/// What the memory of a group amounts to.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    pub rss_kib: u64,
    pub pss_kib: u64,
}

fn field(text: &str, name: &str) -> io::Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no {name} in smaps_rollup")))
}

fn process_cpu_ns(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    if sum > 0 {
        return Ok(sum);
    }
    // Without CONFIG_SCHED_INFO: clock ticks, which is coarse but honest over seconds.
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

/// Nanoseconds that one core was neither idle nor taken by the hypervisor. Idle time is counted
/// by the clock, not by sampling, so this is exact to a tick of /proc/stat (10 ms).
pub fn core_idle_ns(core: usize) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{core}");
    let line = text
        .lines()
        .find(|line| line.split(' ').next() == Some(name.as_str()))
        .ok_or_else(|| io::Error::other(format!("no {name} in /proc/stat")))?;
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let idle = [3, 4, 7].iter().filter_map(|&column| ticks.get(column)).sum::<u64>();
    Ok(idle * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
}
