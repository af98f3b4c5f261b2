//! Asks one backend how it is, as an ordinary client: a connection a question.
//!
//! Knows what to ask and how long to wait; what the answers say is read by the core.

use crate::secret::Secret;
use async_net::TcpStream;
use async_net::unix::UnixStream;
use http_types::headers::{AUTHORIZATION, CONNECTION, HOST};
use http_types::{Method, Request, Response, Url};
use smol::Timer;
use smol::future::{FutureExt, zip};
use smol::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};
use vllm_proxy_core::fleet::{Address, BackendSpec};
use vllm_proxy_core::wire::probe::{Probe, ProbeError, parse_models, parse_version};

/// For all questions together.
const LIMIT: Duration = Duration::from_secs(5);
/// For one connection. Within it a lost SYN is sent again once.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A card of `/v1/models` takes half a kilobyte: this is room for tens of thousands of adapters.
const BODY_BYTES_MAX: u64 = 16 << 20;

/// What a round of questions brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) probe: Probe,
    /// Status of `GET /v1/models`, if it was answered: why there may be no list.
    pub(super) models_status: Option<u16>,
}

/// Asks `/health` first, since nothing else matters if that is not answered.
pub(super) async fn backend(spec: &BackendSpec, key: Option<&Secret>) -> Result<Asked, ProbeError> {
    let end = Instant::now() + LIMIT;
    let health = answer(spec, key, "/health", end).await?.status;
    let (models, version) =
        zip(answer(spec, key, "/v1/models", end), answer(spec, key, "/version", end)).await;
    let body = |answer: Result<Answer, ProbeError>| {
        answer.ok().filter(|answer| answer.status == 200).and_then(|answer| answer.body)
    };
    let models_status = models.as_ref().ok().map(|answer| answer.status);
    let probe = Probe {
        health,
        models: body(models).and_then(|body| parse_models(&body)),
        version: body(version).and_then(|body| parse_version(&body)),
    };
    Ok(Asked { probe, models_status })
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
    let asked = async {
        let request = request(spec, key, path)?;
        let connect_end = end.min(Instant::now() + CONNECT_LIMIT);
        match &spec.address {
            Address::Tcp(address) => {
                let stream = connected(TcpStream::connect(*address), connect_end).await?;
                exchange(stream, request).await
            }
            Address::Unix(path) => {
                let stream = connected(UnixStream::connect(path), connect_end).await?;
                exchange(stream, request).await
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

async fn exchange<S>(stream: S, request: Request) -> Result<Answer, ProbeError>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    let response = async_h1::connect(stream, request).await.map_err(|_| ProbeError::Broken)?;
    Ok(Answer { status: response.status().into(), body: body(response).await })
}

async fn body(mut response: Response) -> Option<Vec<u8>> {
    let length = response.len();
    let mut body = Vec::new();
    let read = response.take_body().take(BODY_BYTES_MAX + 1).read_to_end(&mut body).await;
    let whole = read.is_ok()
        && body.len() as u64 <= BODY_BYTES_MAX
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

    fn spec(address: std::net::SocketAddr) -> BackendSpec {
        BackendSpec {
            upstream: 0,
            address: Address::Tcp(address),
            authority: "vllm.example".to_owned(),
            prefix: "/p".to_owned(),
        }
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
        let asked = smol::block_on(backend(&spec, Some(&key))).unwrap();
        let probe = Probe { health: 200, models: None, version: None };
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
        assert_eq!(smol::block_on(backend(&spec, None)), Err(ProbeError::Broken));
        server.join().unwrap();
    }

    #[test]
    fn a_closed_port_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = spec(listener.local_addr().unwrap());
        drop(listener);
        assert_eq!(smol::block_on(backend(&spec, None)), Err(ProbeError::Connect));
    }

    #[test]
    fn a_missing_unix_socket_is_no_connection() {
        let mut spec = spec(([127, 0, 0, 1], 1).into());
        spec.address = Address::Unix("/nonexistent/vllm.sock".to_owned());
        assert_eq!(smol::block_on(backend(&spec, None)), Err(ProbeError::Connect));
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
        let end = Instant::now() + LIMIT;
        let answer = smol::block_on(answer(&spec, None, "/health", end)).unwrap();
        assert_eq!((answer.status, answer.body), (200, None));
        server.join().unwrap();
    }
}
