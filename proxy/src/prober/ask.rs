//! Asks one backend how it is, as an ordinary client: a connection a question.
//!
//! Knows what to ask and how long to wait; what the answers say is read by the core.

use crate::secret::Secret;
use async_net::TcpStream;
use async_net::unix::UnixStream;
use http_types::headers::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST};
use http_types::{Method, Request, Response, Url};
use smol::Timer;
use smol::future::{FutureExt, zip};
use smol::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};
use vllm_proxy_core::fleet::{Address, BackendSpec};
use vllm_proxy_core::wire::metrics::cache_report;
use vllm_proxy_core::wire::probe::{Probe, ProbeError, parse_flag, parse_models, parse_version};

/// For all questions together.
const LIMIT: Duration = Duration::from_secs(5);
/// For loading an adapter, which may have to come from afar.
const LOAD_LIMIT: Duration = Duration::from_secs(300);
/// For one connection. Within it a lost SYN is sent again once.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A card of `/v1/models` takes half a kilobyte: this is room for tens of thousands of adapters.
const BODY_BYTES_MAX: u64 = 16 << 20;
/// For a page of metrics, which must not keep back what the others say.
const METRICS_LIMIT: Duration = Duration::from_secs(2);
/// A page takes up to half a megabyte.
const METRICS_BYTES_MAX: u64 = 4 << 20;

/// What a round of questions brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) probe: Probe,
    /// Status of `GET /v1/models`, if it was answered: why there may be no list.
    pub(super) models_status: Option<u16>,
}

/// What is not asked each time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Also {
    /// Whether it sleeps or is paused.
    pub(super) rest: bool,
    /// How large its cache is, and of what use.
    pub(super) cache: bool,
}

/// Asks `/health` first, since nothing else matters if that is not answered.
pub(super) async fn backend(
    spec: &BackendSpec,
    key: Option<&Secret>,
    also: Also,
) -> Result<Asked, ProbeError> {
    let end = Instant::now() + LIMIT;
    let health = answer(spec, key, "/health", end).await?.status;
    let metrics = async {
        if !also.cache || health != 200 {
            return None;
        }
        let end = end.min(Instant::now() + METRICS_LIMIT);
        let request = request(spec, key, "/metrics").ok()?;
        let answer = ask(spec, request, METRICS_BYTES_MAX, end).await.ok()?;
        answer.body.filter(|_| answer.status == 200)
    };
    let known = zip(models(spec, key, end), answer(spec, None, "/version", end));
    let ((models, version), metrics) = zip(known, metrics).await;
    let body = |answer: Result<Answer, ProbeError>| {
        answer.ok().filter(|answer| answer.status == 200).and_then(|answer| answer.body)
    };
    let (models, keyed) = models;
    let models_status = models.as_ref().ok().map(|answer| answer.status);
    let probe = Probe {
        health,
        models: body(models).and_then(|body| parse_models(&body)),
        version: body(version).and_then(|body| parse_version(&body)),
        keyed,
        rests: if also.rest { rests(spec, end).await } else { None },
        cache: metrics.map(|page| cache_report(&page)),
    };
    Ok(Asked { probe, models_status })
}

/// The list of models, and whether it takes a key to see it. Asked without one first: with ours it
/// would stay unknown whether clients need one.
async fn models(
    spec: &BackendSpec,
    key: Option<&Secret>,
    end: Instant,
) -> (Result<Answer, ProbeError>, Option<bool>) {
    let open = answer(spec, None, "/v1/models", end).await;
    let keyed = open.as_ref().ok().map(|answer| answer.status == 401);
    match key {
        Some(_) if keyed == Some(true) => (answer(spec, key, "/v1/models", end).await, keyed),
        Some(_) | None => (open, keyed),
    }
}

/// Whether it sleeps or is paused; `None` if it did not say. A server that is not in development
/// mode knows neither, and says 404.
async fn rests(spec: &BackendSpec, end: Instant) -> Option<bool> {
    let (sleeping, paused) =
        zip(answer(spec, None, "/is_sleeping", end), answer(spec, None, "/is_paused", end)).await;
    let (sleeping, paused) = (sleeping.ok()?, paused.ok()?);
    let says = |answer: Answer, field| {
        answer.body.and_then(|body| parse_flag(&body, field)).unwrap_or_default()
    };
    Some(says(sleeping, "is_sleeping") || says(paused, "is_paused"))
}

/// Has it load an adapter, as a client had others do. Says the status of the answer.
pub(super) async fn load(
    spec: &BackendSpec,
    key: Option<&Secret>,
    body: &[u8],
) -> Result<u16, ProbeError> {
    let mut request = request(spec, key, "/v1/load_lora_adapter")?;
    request.set_method(Method::Post);
    request.set_body(body);
    request.insert_header(CONTENT_TYPE, "application/json");
    Ok(ask(spec, request, BODY_BYTES_MAX, Instant::now() + LOAD_LIMIT).await?.status)
}

struct Answer {
    status: u16,
    /// `None`: it is not whole, or too long.
    body: Option<Vec<u8>>,
}

async fn answer(
    spec: &BackendSpec,
    key: Option<&Secret>,
    path: &str,
    end: Instant,
) -> Result<Answer, ProbeError> {
    ask(spec, request(spec, key, path)?, BODY_BYTES_MAX, end).await
}

async fn ask(
    spec: &BackendSpec,
    request: Request,
    body_bytes_max: u64,
    end: Instant,
) -> Result<Answer, ProbeError> {
    let asked = async {
        let connect_end = end.min(Instant::now() + CONNECT_LIMIT);
        match &spec.address {
            Address::Tcp(address) => {
                let stream = connected(TcpStream::connect(*address), connect_end).await?;
                exchange(stream, request, body_bytes_max).await
            }
            Address::Unix(path) => {
                let stream = connected(UnixStream::connect(path), connect_end).await?;
                exchange(stream, request, body_bytes_max).await
            }
        }
    };
    asked.or(too_late(end)).await
}

fn request(spec: &BackendSpec, key: Option<&Secret>, path: &str) -> Result<Request, ProbeError> {
    // Only its path is sent, as `Host` is said by hand.
    let url = Url::parse(&format!("http://upstream{}{path}", spec.prefix));
    let mut request = Request::new(Method::Get, url.map_err(|_| ProbeError::Broken)?);
    request.insert_header(HOST, spec.authority.as_str());
    request.insert_header(CONNECTION, "close");
    if let Some(key) = key {
        request.insert_header(AUTHORIZATION, format!("Bearer {}", key.expose()));
    }
    Ok(request)
}

async fn connected<S>(
    connect: impl Future<Output = io::Result<S>>,
    end: Instant,
) -> Result<S, ProbeError> {
    let connect = async {
        connect.await.map_err(|error| {
            // Anything else is a lack of descriptors, ports or memory here: not the backend's
            // fault, so no more is said than that it did not answer.
            let refused = matches!(
                error.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::ConnectionReset
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
            );
            if refused { ProbeError::Connect } else { ProbeError::Timeout }
        })
    };
    connect.or(too_late(end)).await
}

async fn exchange<S>(stream: S, request: Request, body_bytes_max: u64) -> Result<Answer, ProbeError>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    let response = async_h1::connect(stream, request).await.map_err(|_| ProbeError::Broken)?;
    let status = response.status().into();
    Ok(Answer { status, body: body(response, body_bytes_max).await })
}

async fn body(mut response: Response, bytes_max: u64) -> Option<Vec<u8>> {
    let length = response.len();
    let mut body = Vec::new();
    let read = response.take_body().take(bytes_max + 1).read_to_end(&mut body).await;
    let whole = read.is_ok()
        && body.len() as u64 <= bytes_max
        && length.is_none_or(|length| length == body.len());
    whole.then_some(body)
}

async fn too_late<T>(end: Instant) -> Result<T, ProbeError> {
    Timer::at(end).await;
    Err(ProbeError::Timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};
    use vllm_proxy_core::fleet::Labels;
    use vllm_proxy_core::wire::probe::CacheReport;

    fn spec(address: std::net::SocketAddr) -> BackendSpec {
        BackendSpec {
            upstream: 0,
            address: Address::Tcp(address),
            authority: "vllm.example".to_owned(),
            prefix: "/p".to_owned(),
            labels: Labels::default(),
        }
    }

    /// Answers each connection by its path, until the test ends.
    fn routes(answers: fn(&str) -> Option<&'static str>) -> BackendSpec {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = spec(listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                let (status, body) = match answers(&String::from_utf8(head).unwrap()) {
                    Some(body) => ("200 OK", body),
                    None => ("401 Unauthorized", ""),
                };
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        spec
    }

    #[rstest]
    #[case::with_ours(Some("hunter2"), Some(1), 200)]
    #[case::with_a_wrong_one(Some("hunter3"), None, 401)]
    #[case::with_none(None, None, 401)]
    fn a_key_that_is_asked_for(
        #[case] key: Option<&str>,
        #[case] models: Option<usize>,
        #[case] status: u16,
    ) {
        let spec = routes(|head| {
            let open = !head.starts_with("GET /p/v1/models ");
            if open {
                return Some("");
            }
            head.contains("Bearer hunter2\r\n").then_some(r#"{"data":[{"id":"a"}]}"#)
        });
        let key = key.map(|key| Secret::new(key.to_owned()));
        let asked = smol::block_on(backend(&spec, key.as_ref(), Also::default())).unwrap();
        assert_eq!(asked.probe.keyed, Some(true));
        assert_eq!(asked.probe.models.map(|models| models.len()), models);
        assert_eq!(asked.models_status, Some(status));
    }

    #[rstest]
    #[case::sleeping(r#"{"is_sleeping":true}"#, Some(true))]
    #[case::awake(r#"{"is_sleeping":false}"#, Some(false))]
    #[case::not_in_development_mode(r#"{"detail":"Not Found"}"#, Some(false))]
    fn rest_is_asked_for(#[case] says: &'static str, #[case] expected: Option<bool>) {
        // A function has no place for what a case says.
        let answers: fn(&str) -> Option<&'static str> = match says {
            r#"{"is_sleeping":true}"# => |head| {
                Some(if head.contains("/is_sleeping ") { r#"{"is_sleeping":true}"# } else { "{}" })
            },
            r#"{"is_sleeping":false}"# => |_| Some(r#"{"is_sleeping":false,"is_paused":false}"#),
            _ => |_| Some(r#"{"detail":"Not Found"}"#),
        };
        let also = Also { rest: true, ..Also::default() };
        let asked = smol::block_on(backend(&routes(answers), None, also)).unwrap();
        assert_eq!(asked.probe.rests, expected);
    }

    const CACHE: &str = "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000\"} 1.0\n\
                         vllm:prefix_cache_queries_total{engine=\"0\"} 50.0\n\
                         vllm:prefix_cache_hits_total{engine=\"0\"} 20.0\n";

    fn all_have_a_page(_: &str) -> Option<&'static str> {
        Some(CACHE)
    }

    fn nobody_has_a_page(head: &str) -> Option<&'static str> {
        (!head.contains("/p/metrics ")).then_some("")
    }

    fn the_page_is_empty(_: &str) -> Option<&'static str> {
        Some("")
    }

    /// What metrics say, or that they are not to be had, changes nothing else.
    #[rstest]
    #[case::a_page(
        all_have_a_page,
        true,
        Some(CacheReport {
            kv_tokens: Some(16_000),
            prefix_caching: None,
            queries: Some(50),
            hits: Some(20),
        })
    )]
    #[case::not_asked(all_have_a_page, false, None)]
    #[case::refused(nobody_has_a_page, true, None)]
    #[case::nothing_of_it(the_page_is_empty, true, Some(CacheReport::default()))]
    fn metrics_are_asked_for(
        #[case] answers: fn(&str) -> Option<&'static str>,
        #[case] cache: bool,
        #[case] expected: Option<CacheReport>,
    ) {
        let also = Also { cache, ..Also::default() };
        let asked = smol::block_on(backend(&routes(answers), None, also)).unwrap();
        let probe = Probe { health: 200, keyed: Some(false), cache: expected, ..Probe::default() };
        assert_eq!(asked, Asked { probe, models_status: Some(200) });
    }

    #[test]
    fn a_page_that_is_too_long_is_none() {
        let long = "x".repeat(usize::try_from(METRICS_BYTES_MAX).unwrap() + 1).leak();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", long.len());
        let (spec, server) = server(vec![[head.as_bytes(), long.as_bytes()].concat().leak()]);
        let end = Instant::now() + LIMIT;
        let request = request(&spec, None, "/metrics").unwrap();
        let answer = smol::block_on(ask(&spec, request, METRICS_BYTES_MAX, end)).unwrap();
        assert_eq!((answer.status, answer.body), (200, None));
        drop(server);
    }

    /// Answers so many connections, one after the other, with these bytes; returns the heads.
    fn server(answers: Vec<&'static [u8]>) -> (BackendSpec, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = spec(listener.local_addr().unwrap());
        let serve = move || {
            let serve = |bytes: &[u8]| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                stream.write_all(bytes).unwrap();
                String::from_utf8(head).unwrap()
            };
            answers.into_iter().map(serve).collect()
        };
        (spec, thread::spawn(serve))
    }

    #[test]
    fn asks_as_an_ordinary_client() {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let (spec, server) = server(vec![ok, ok, ok]);
        let key = Secret::new("hunter2".to_owned());
        let asked = smol::block_on(backend(&spec, Some(&key), Also::default())).unwrap();
        let probe = Probe { health: 200, keyed: Some(false), ..Probe::default() };
        assert_eq!(asked, Asked { probe, models_status: Some(200) });
        let heads = server.join().unwrap();
        assert!(heads[0].starts_with("GET /p/health HTTP/1.1\r\nhost: vllm.example\r\n"));
        assert!(heads[0].contains("authorization: Bearer hunter2\r\n"), "{}", heads[0]);
        assert!(heads[1..].iter().any(|head| head.starts_with("GET /p/v1/models ")));
        assert!(heads[1..].iter().any(|head| head.starts_with("GET /p/version ")));
    }

    #[rstest]
    #[case::closed(b"")]
    #[case::no_http(b"SSH-2.0-OpenSSH\r\n\r\n")]
    #[case::cut(b"HTTP/1.1 200")]
    fn nonsense_is_broken(#[case] answer: &'static [u8]) {
        let (spec, server) = server(vec![answer]);
        assert_eq!(smol::block_on(backend(&spec, None, Also::default())), Err(ProbeError::Broken));
        server.join().unwrap();
    }

    #[test]
    fn a_closed_port_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = spec(listener.local_addr().unwrap());
        drop(listener);
        assert_eq!(smol::block_on(backend(&spec, None, Also::default())), Err(ProbeError::Connect));
    }

    #[test]
    fn a_missing_unix_socket_is_no_connection() {
        let mut spec = spec(([127, 0, 0, 1], 1).into());
        spec.address = Address::Unix("/nonexistent/vllm.sock".to_owned());
        assert_eq!(smol::block_on(backend(&spec, None, Also::default())), Err(ProbeError::Connect));
    }

    #[test]
    fn silence_is_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = spec(listener.local_addr().unwrap());
        let end = Instant::now() + Duration::from_millis(50);
        let answer = smol::block_on(answer(&spec, None, "/health", end));
        assert_eq!(answer.err(), Some(ProbeError::Timeout));
    }

    #[test]
    fn half_a_body_is_none() {
        let (spec, server) = server(vec![b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}"]);
        let end = Instant::now() + LOAD_LIMIT;
        let answer = smol::block_on(answer(&spec, None, "/health", end)).unwrap();
        assert_eq!((answer.status, answer.body), (200, None));
        server.join().unwrap();
    }
}
