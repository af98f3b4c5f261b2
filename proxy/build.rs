//! Tells the tests whether this machine lets them use io_uring and has a browser: libtest counts as
//! ignored only what was so when it was compiled. The product is the same either way.

/// What proxies of so many tests at once may lock together, in bytes.
#[cfg(feature = "glommio")]
const LOCKED_BYTES_A_TEST: u64 = 4 << 20;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_chromium)");
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&paths).any(|path| path.join("chromium").is_file()) {
        println!("cargo::warning=tests of the page are ignored: there is no chromium");
        println!("cargo::rustc-cfg=no_chromium");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(io_uring_refused)");
    #[cfg(feature = "glommio")]
    if let Err(why) = usable() {
        println!("cargo::warning=tests of glommio are ignored: {why}");
        println!("cargo::rustc-cfg=io_uring_refused");
    }
}

#[cfg(feature = "glommio")]
fn usable() -> Result<(), String> {
    let ring: std::io::Result<io_uring::IoUring> =
        io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
    ring.map_err(|error| format!("no ring can be made ({error})"))?;
    let read = |path| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let caps = read("/proc/self/status")?;
    let caps = caps.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let caps = caps.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok()).unwrap_or_default();
    const CAP_IPC_LOCK: u64 = 1 << 14;
    if caps & CAP_IPC_LOCK != 0 {
        return Ok(());
    }
    let limits = read("/proc/self/limits")?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    // Soft, hard, unit. Proxies raise the soft one; `unlimited` is no number.
    let hard = limit.and_then(|limit| limit.split_whitespace().nth(1)?.parse::<u64>().ok());
    let tests = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    match hard {
        Some(hard) if hard < tests * LOCKED_BYTES_A_TEST => Err(format!(
            "{tests} tests at once lock up to {} MiB (`ulimit -l`)",
            (tests * LOCKED_BYTES_A_TEST) >> 20
        )),
        _ => Ok(()),
    }
}
