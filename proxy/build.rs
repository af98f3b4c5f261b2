//! Tells the program which commit it is built from, and the tests whether this machine lets them
//! use io_uring and namespaces and has a browser: libtest counts as ignored only what was so when
//! it was compiled.
//!
//! Looks at no clock, so that the same commit gives the same program.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, iter};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let (commit, date) = match variable("VLLM_PROXY_COMMIT") {
        Some(commit) => (short(&commit), variable("SOURCE_DATE_EPOCH").map(|epoch| day(&epoch))),
        None => match committed() {
            Some((commit, date)) => (commit, Some(date)),
            None => ("unknown".to_owned(), None),
        },
    };
    println!("cargo::rustc-env=VLLM_PROXY_COMMIT={commit}");
    println!("cargo::rustc-env=VLLM_PROXY_COMMIT_DATE={}", date.unwrap_or_default());
    println!("cargo::rustc-env=VLLM_PROXY_TARGET={}", env::var("TARGET").unwrap_or_default());
    println!("cargo::rustc-env=VLLM_PROXY_RUSTC={}", compiler());

    println!("cargo::rustc-check-cfg=cfg(no_chromium)");
    let paths = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&paths).any(|path| path.join("chromium").is_file()) {
        println!("cargo::warning=tests of the page are ignored: there is no chromium");
        println!("cargo::rustc-cfg=no_chromium");
    }
    println!("cargo::rustc-check-cfg=cfg(io_uring_refused)");
    println!("cargo::rustc-check-cfg=cfg(namespaces_refused)");
    if !has_namespaces() {
        println!("cargo::warning=tests of name resolution are ignored: namespaces are refused");
        println!("cargo::rustc-cfg=namespaces_refused");
    }
    #[cfg(feature = "glommio")]
    if let Err(why) = ring::usable() {
        println!("cargo::warning=tests of glommio are ignored: {why}");
        println!("cargo::rustc-cfg=io_uring_refused");
    }
}

/// A variable that says something. Another value of it builds again.
fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    let value = env::var(name).ok()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// As many digits as git is asked for, of a commit that somebody named: a whole one, or a name.
fn short(commit: &str) -> String {
    assert!(
        !commit.contains(|c: char| c.is_control() || c.is_whitespace()),
        "invalid value `{}` for VLLM_PROXY_COMMIT: expected a commit, one word",
        commit.escape_debug()
    );
    let digits = commit.bytes().take_while(u8::is_ascii_hexdigit).count();
    match digits == commit.len() {
        true => commit.chars().take(DIGITS).collect(),
        false => commit.to_owned(),
    }
}

const DIGITS: usize = 12;

/// What the program is made of. A change of any of it builds the program again anyway.
const SOURCES: [&str; 8] = [
    "core",
    "proxy",
    "runtime-glommio",
    "runtime-smol",
    "sim",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
];

/// The commit that is checked out here and its day, if this is a clone and there is a git.
fn committed() -> Option<(String, String)> {
    let package = env::var_os("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&package).parent()?;
    // Else it would be somebody else's repository that these sources were unpacked into.
    if !root.join(".git").exists() {
        return None;
    }
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(["--no-optional-locks", "-c", "log.showSignature=false"]).args(arguments);
        let output = git.current_dir(root).env("TZ", "UTC").output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| said.trim().to_owned())
    };
    let abbrev = format!("--abbrev={DIGITS}");
    let said = git(&["log", "-1", &abbrev, "--date=short-local", "--format=%h %cd"])?;
    let (commit, date) = said.split_once(' ')?;
    let changed = !git(&iter::once("status")
        .chain(["--porcelain", "--untracked-files=no", "--"])
        .chain(SOURCES)
        .collect::<Vec<_>>())?
    .is_empty();
    // A file that is watched and missing would have all built again each time.
    let heads = ["HEAD", "logs/HEAD", "packed-refs"];
    let heads = heads.into_iter().filter_map(|name| git(&["rev-parse", "--git-path", name]));
    for path in heads.map(|path| root.join(path)).chain(SOURCES.map(|name| root.join(name))) {
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    Some((format!("{commit}{}", if changed { "-dirty" } else { "" }), date.to_owned()))
}

/// The day in UTC that so many seconds since 1970 fall on.
fn day(epoch: &str) -> String {
    let Ok(seconds) = epoch.parse::<u64>() else {
        panic!("invalid value `{epoch}` for SOURCE_DATE_EPOCH: expected seconds since 1970");
    };
    // Years begin in March here, so that a leap day is the last of one; 400 of them have 146,097
    // days, and five months in a row always 153.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{date:02}", era * 400 + year + later)
}

/// The compiler's version, without its commit and day.
fn compiler() -> String {
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(compiler).arg("--version").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    said.split_whitespace().nth(1).unwrap_or("unknown").to_owned()
}

/// Whether a test may have a network and files of its own.
fn has_namespaces() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net", "mount", "--bind"]);
    command.arg(env::var_os("OUT_DIR").unwrap_or_default()).arg("/etc");
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[cfg(feature = "glommio")]
mod ring {
    /// What proxies of so many tests at once may lock together, in bytes.
    const LOCKED_BYTES_A_TEST: u64 = 4 << 20;

    pub(super) fn usable() -> Result<(), String> {
        let ring: std::io::Result<io_uring::IoUring> =
            io_uring::IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
        ring.map_err(|error| format!("no ring can be made ({error})"))?;
        let read = |path| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let caps = read("/proc/self/status")?;
        let caps = caps.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let caps =
            caps.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok()).unwrap_or_default();
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
}
