//! Names of a test's own: a network with nothing but loopback, an `/etc` that says where names are
//! looked up, and a name server that answers what the test wants.
//!
//! glibc takes its name server from `/etc/resolv.conf` and its port is 53, so each test runs once
//! more by itself, as root of namespaces that end with it (`unshare` and `mount` of util-linux).

use crate::folder::{Folder, replace};
use crate::proxy::Runtime;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Set where a test runs by itself: where its `/etc` is.
const INSIDE: &str = "VLLM_PXY_TEST_ETC";

/// Makes each of these functions, of a runtime and of [`Names`], a test on every runtime. Where
/// namespaces are refused they count as ignored.
macro_rules! with_names_on_every_runtime {
    ($($test:ident),+ $(,)?) => {
        mod tests {
            use crate::proxy::Runtime;

            $(
                #[rstest::rstest]
                #[cfg_attr(not(feature = "smol"), ignore = "built without smol")]
                #[cfg_attr(
                    all(feature = "smol", namespaces_refused),
                    ignore = "namespaces were refused as this was built"
                )]
                #[case::smol(Runtime::Smol)]
                #[cfg_attr(not(feature = "glommio"), ignore = "built without glommio")]
                #[cfg_attr(
                    all(feature = "glommio", any(io_uring_refused, namespaces_refused)),
                    ignore = "io_uring or namespaces were refused as this was built"
                )]
                #[case::glommio(Runtime::Glommio)]
                fn $test(#[case] runtime: Runtime) {
                    let test = concat!(module_path!(), "::", stringify!($test));
                    crate::names::inside(test, runtime, |names| super::$test(runtime, names));
                }
            )+
        }
    };
}
pub(crate) use with_names_on_every_runtime;

/// Runs this test once more, where it has names of its own, or is there and runs its body.
pub(crate) fn inside(test: &str, runtime: Runtime, body: impl FnOnce(&Names)) {
    if let Some(etc) = std::env::var_os(INSIDE) {
        raise_loopback();
        body(&Names::serve(etc.into()));
        return;
    }
    let etc = Folder::new();
    // A name server that is late is none: it is this process, which may be held up.
    etc.write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:5 attempts:1\n");
    etc.write("nsswitch.conf", "hosts: files dns\n");
    etc.write("hosts", "127.0.0.1 localhost\n");
    let case = match runtime {
        Runtime::Smol => "case_1_smol",
        Runtime::Glommio => "case_2_glommio",
    };
    let (_crate, test) = test.split_once("::").expect("a path begins with the crate");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net", "sh", "-c"]);
    command.arg(r#"mount --bind "$0" /etc && exec "$@""#).arg(etc.path());
    command.arg(std::env::current_exe().expect("it runs"));
    command.args(["--exact", &format!("{test}::{case}"), "--nocapture"]);
    command.env(INSIDE, etc.path()).stdin(Stdio::null());
    let output = command.output().expect("util-linux is installed");
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "it failed inside");
}

/// Takes the loopback interface up, as `ip link set lo up` does where that is installed.
fn raise_loopback() {
    const AF_NETLINK: i32 = 16;
    /// Whole length, RTM_NEWLINK, NLM_F_REQUEST and NLM_F_ACK, a number, from nobody in particular.
    const HEADER: (u32, u16, u16, u32, u32) = (32, 16, 5, 1, 0);
    /// Interface 1, IFF_UP, and nothing but that changes.
    const LINK: [u32; 4] = [0, 1, 1, 1];
    let (length, kind, flags, number, from) = HEADER;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([kind, flags].into_iter().flat_map(u16::to_ne_bytes));
    message.extend([number, from].into_iter().chain(LINK).flat_map(u32::to_ne_bytes));
    let route = Protocol::from(0);
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(route)).unwrap();
    socket.send(&message).unwrap();
    let mut answer = [0; 256];
    let bytes = socket.read(&mut answer).unwrap();
    // An NLMSG_ERROR, whose error is 0.
    assert!(bytes >= 20 && answer[16..20] == [0; 4], "loopback stays down: {answer:?}");
}

/// What the name server says of a name. It knows no other.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Those of the family that is asked for.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    Unknown,
    /// The server fails.
    Failure,
    Silence,
}

pub(crate) struct Names {
    etc: PathBuf,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    answers: BTreeMap<String, Answer>,
    /// How often IPv4 addresses of a name were asked for.
    asked: BTreeMap<String, usize>,
}

impl Names {
    fn serve(etc: PathBuf) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).expect("we are root here");
        let known = Arc::new(Mutex::new(Known::default()));
        let shared = Arc::clone(&known);
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((bytes, from)) = socket.recv_from(&mut question) {
                if let Some(answer) = lock(&shared).answer(&question[..bytes]) {
                    // Who does not wait for it any more asks again.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { etc, known }
    }

    /// From now on this is the answer.
    pub(crate) fn say(&self, name: &str, answer: Answer) {
        lock(&self.known).answers.insert(name.to_owned(), answer);
    }

    /// From now on it has these addresses.
    pub(crate) fn has(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.say(name, Answer::Addresses(addresses));
    }

    /// How often it was asked for a name.
    pub(crate) fn asked(&self, name: &str) -> usize {
        lock(&self.known).asked.get(name).copied().unwrap_or_default()
    }

    /// Writes a file of `/etc`, in one step.
    pub(crate) fn write(&self, file: &str, text: &str) {
        replace(&self.etc.join(file), text);
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// The answer to a question (RFC 1035 section 4.1); `None` for silence.
    fn answer(&mut self, question: &[u8]) -> Option<Vec<u8>> {
        const A: u16 = 1;
        const AAAA: u16 = 28;
        let mut at = 12;
        let mut labels = Vec::new();
        loop {
            let length = usize::from(*question.get(at)?);
            let label = question.get(at + 1..at + 1 + length)?;
            at += 1 + length;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(label).to_lowercase());
        }
        let kind = u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]);
        let asked = question.get(12..at + 4)?;
        let name = labels.join(".");
        if kind == A {
            *self.asked.entry(name.clone()).or_default() += 1;
        }
        let (code, addresses) = match self.answers.get(&name) {
            Some(Answer::Addresses(addresses)) => (0, addresses.as_slice()),
            Some(Answer::Unknown) | None => (3, &[][..]),
            Some(Answer::Failure) => (2, &[][..]),
            Some(Answer::Silence) => return None,
        };
        let records: Vec<_> = addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(four) => (A, four.octets().to_vec()),
                IpAddr::V6(six) => (AAAA, six.octets().to_vec()),
            })
            .filter(|(of, _)| *of == kind)
            .collect();
        let mut answer = question[..2].to_vec();
        // An answer of a server that would ask others.
        answer.extend([0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        answer.extend(asked);
        for (of, bytes) in records {
            // The name asked for, class IN, good for no second.
            answer.extend([0xc0, 12, 0, of as u8, 0, 1, 0, 0, 0, 0, 0, bytes.len() as u8]);
            answer.extend(bytes);
        }
        Some(answer)
    }
}
