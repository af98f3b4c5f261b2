//! Where io_uring is refused, the proxy says who refuses and what to do before it listens, and runs
//! on smol all the same.
//!
//! Filters are real ones, of the kind that containers have, and so are limits. What cannot be tried
//! on a machine that others share, its sysctl, is a table beside the checks.

use crate::backend::Backend;
use crate::proxy::{Proxy, Runtime, eventually};
use crate::wire::{Wire, chat, get, ok};
use rstest::rstest;
use rustix::io::Errno;
use rustix::process::geteuid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::net::TcpStream;
use std::process::Command;
use std::thread;

const PROXY: &str = env!("CARGO_BIN_EXE_vllm-proxy");

// Numbers that all architectures share.
const SETUP: i64 = 425;
const ENTER: i64 = 426;
const REGISTER: i64 = 427;

/// A proxy behind a filter that answers these calls with an error, as Docker's default profile
/// does.
fn filtered(calls: &[i64], errno: Errno, runtime: Runtime, upstreams: &[String]) -> Proxy {
    let error = SeccompAction::Errno(errno.raw_os_error().cast_unsigned());
    let rules = calls.iter().map(|&call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, error, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    let upstreams = upstreams.to_vec();
    // A filter cannot be taken off: it is a thread's, and of whatever that starts.
    let started = thread::spawn(move || {
        seccompiler::apply_filter(&filter).unwrap();
        Proxy::spawn(runtime, &["-p", "0"], &[], &upstreams)
    });
    started.join().unwrap()
}

/// A proxy of so many threads that may lock so much, whoever runs this test.
fn limited(kib: u64, threads: &str, upstreams: &[String]) -> Proxy {
    let bytes = kib * 1024;
    let mut command = Command::new("prlimit");
    command.arg(format!("--memlock={bytes}:{bytes}"));
    if geteuid().is_root() {
        // To whom it may concern no limit otherwise.
        command.args(["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]);
    }
    command.arg(PROXY);
    let options = ["-p", "0", "--threads", threads];
    Proxy::spawn_by(command, Runtime::Glommio, &options, &[], upstreams)
}

fn nobody() -> [String; 1] {
    ["http://127.0.0.1:1".to_owned()]
}

/// What a proxy says that ends without having listened: one line.
fn refusal(mut proxy: Proxy) -> String {
    let (status, said) = proxy.exit();
    assert_eq!(status, Some(1), "{said}");
    assert_eq!(proxy.entries("listening"), 0, "{}", proxy.told());
    assert_eq!(said.matches('\n').count(), 1, "{said:?}");
    assert!(said.starts_with("vllm-proxy: cannot run on glommio: "), "{said}");
    let way_out = if cfg!(feature = "smol") {
        "; `--runtime smol` works anywhere\n"
    } else {
        "; a build with smol works anywhere\n"
    };
    assert!(said.ends_with(way_out), "{said}");
    said
}

#[rstest]
#[case::as_docker(&[SETUP, ENTER, REGISTER], Errno::PERM, "io_uring_setup (Operation not permitted")]
#[case::as_an_older_kernel(
    &[SETUP, ENTER, REGISTER], Errno::NOSYS, "io_uring_setup (Function not implemented"
)]
#[case::one_forgotten(&[REGISTER], Errno::PERM, "io_uring_register (Operation not permitted")]
#[case::another_forgotten(&[ENTER], Errno::PERM, "io_uring_enter (Operation not permitted")]
#[cfg_attr(io_uring_refused, ignore = "io_uring was refused as this was built")]
fn by_a_filter(#[case] calls: &[i64], #[case] errno: Errno, #[case] what: &str) {
    let said = refusal(filtered(calls, errno, Runtime::Glommio, &nobody()));
    assert!(said.contains(&format!("a seccomp filter refuses {what} (os error ")), "{said}");
    for advice in [
        "allow io_uring_setup, io_uring_enter and io_uring_register",
        "Docker: `--security-opt seccomp=PROFILE`",
        "Kubernetes: `seccompProfile` of type Localhost, or Unconfined",
    ] {
        assert!(said.contains(advice), "{said}");
    }
}

#[test]
#[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
fn by_a_filter_but_smol_runs() {
    let backend = Backend::answering(&["m"], |_| ok("here"));
    let calls = [SETUP, ENTER, REGISTER];
    let mut proxy = filtered(&calls, Errno::PERM, Runtime::Smol, &[backend.upstream()]);
    proxy.await_listening();
    proxy.await_entries("backend is up", 1);
    assert_eq!(proxy.ask(&get("/health")), 200, "{}", proxy.told());
    let mut client = proxy.client();
    client.send(chat("m"));
    assert_eq!(client.answer().unwrap().text(), "here");
}

/// One test, since what all processes of a user lock counts together.
#[test]
#[cfg_attr(io_uring_refused, ignore = "io_uring was refused as this was built")]
fn by_a_limit_of_locked_memory() {
    let said = refusal(limited(511, "1", &nobody()));
    assert!(said.contains("glommio: 1 thread locks 512 KiB of memory ("), "{said}");
    assert!(said.contains(" and the limit is 511: raise it (`ulimit -l 512`; "), "{said}");
    assert!(!said.contains("lower --threads"), "{said}");

    let said = refusal(limited(512, "64", &nobody()));
    let each = said.split_once(" KiB of memory (").and_then(|(_, rest)| rest.split_once(" each"));
    let each: u64 = each.unwrap().0.parse().unwrap();
    let needed = each * 64;
    for expected in [
        format!("glommio: 64 threads lock {needed} KiB of memory ("),
        " and the limit is 512: raise it (".to_owned(),
        format!("`ulimit -l {needed}`; Docker: `--ulimit memlock={}`; ", needed * 1024),
        format!("systemd: `LimitMEMLOCK={needed}K`; Kubernetes: "),
        ", or lower --threads to 1; ".to_owned(),
    ] {
        assert!(said.contains(&expected), "expected {expected} in {said}");
    }

    // Enough for two is enough, with nothing to spare, and not enough for three.
    let said = refusal(limited(each * 2, "3", &nobody()));
    assert!(said.contains(", or lower --threads to 2; "), "{said}");
    let backend = Backend::answering(&["m"], |_| ok("here"));
    eventually("two threads serve", || {
        let mut proxy = limited(each * 2, "2", &[backend.upstream()]);
        // Connections are spread over the threads.
        let serves = proxy.listens() && (0..16).all(|_| is_here(&proxy));
        if serves {
            assert_eq!(proxy.values("starting")[0]["runtime"], "glommio");
        } else {
            // By whoever else runs such tests on this machine.
            let (_, said) = proxy.exit();
            assert!(said.contains("is locked already, by other processes of this user"), "{said}");
        }
        serves
    });
}

/// Whether a request is answered.
fn is_here(proxy: &Proxy) -> bool {
    let Ok(stream) = TcpStream::connect(proxy.address) else { return false };
    let mut client = Wire::new(stream);
    let sent = client.try_send(chat("m"));
    sent.is_ok() && client.answer().is_ok_and(|answer| answer.text() == "here")
}

#[rstest]
#[cfg_attr(io_uring_refused, ignore = "io_uring was refused as this was built")]
fn nobody_says_which_cores_there_are() {
    const AS_ROOT: [&str; 2] = ["--map-root-user", "--mount"];
    let allowed = Command::new("unshare").args(AS_ROOT).arg("true").status();
    if !allowed.is_ok_and(|status| status.success()) {
        println!("namespaces are refused here: /sys cannot be hidden");
        return;
    }
    let mut command = Command::new("unshare");
    let hide = "mount -t tmpfs none /sys && exec \"$0\" \"$@\"";
    command.args(AS_ROOT).args(["sh", "-c", hide, PROXY]);
    let proxy = Proxy::spawn_by(command, Runtime::Glommio, &["-p", "0"], &[], &nobody());
    let said = refusal(proxy);
    let expected = "vllm-proxy: cannot run on glommio: /sys/devices/system does not say which \
                    cores there are (";
    assert!(said.starts_with(expected), "{said}");
    assert!(said.contains("mount sysfs at /sys"), "{said}");
}
