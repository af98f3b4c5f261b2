//! How much memory there is, for a default that fits the machine or the container.

use std::fs;
use std::path::{Path, PathBuf};

/// What a machine that tells nothing is taken to have.
const UNKNOWN: u64 = 4 << 30;

/// The memory of this machine, or as much of it as this process's control group may use.
pub(crate) fn available() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups).into_iter().filter_map(|path| {
        // "max" is no number, and version 1 says a huge one: both limit nothing.
        fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    });
    limits.chain(machine).min().unwrap_or(UNKNOWN)
}

/// `MemTotal` of `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Where limits may stand, from the text of `/proc/self/cgroup`: every group above ours limits us
/// too, and in a container the path may be that of the host, so the root is always among them.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut all = |root: &str, path: &str, file: &str| {
        let path = Path::new(path.trim_start_matches('/'));
        files.extend(path.ancestors().map(|group| Path::new(root).join(group).join(file)));
    };
    all("/sys/fs/cgroup", "", "memory.max");
    all("/sys/fs/cgroup/memory", "", "memory.limit_in_bytes");
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        match (fields.next(), fields.next()) {
            (Some(""), Some(path)) => all("/sys/fs/cgroup", path, "memory.max"),
            (Some(controllers), Some(path)) if controllers.split(',').any(|c| c == "memory") => {
                all("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes");
            }
            _ => {}
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        assert_eq!(total("MemTotal:       16 kB\nMemFree: 1 kB\n"), Some(16 << 10));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        let files = limit_files("12:cpu,memory:/docker/a\n0::/system.slice/b.service\n");
        for file in [
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/system.slice/memory.max",
            "/sys/fs/cgroup/system.slice/b.service/memory.max",
            "/sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes",
        ] {
            assert!(files.iter().any(|path| path == Path::new(file)), "{file} in {files:?}");
        }
    }
}
