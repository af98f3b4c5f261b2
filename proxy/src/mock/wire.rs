//! A connection whose next head can be read before anybody consumes it: async-h1 cannot hand over a
//! connection that is to be upgraded, so someone has to look first.

use smol::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use smol::net::TcpStream;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// What is looked at before the rest is left to async-h1, which has its own limit.
const HEAD_MAX: usize = 65_536;

/// A connection; its clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// Read, and not yet consumed. A mutex only since async-h1 asks for `Send`.
    ahead: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: Arc::default() }
    }

    fn ahead(&self) -> MutexGuard<'_, Vec<u8>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next head with its empty line, still to be consumed. Empty if there is none, as when the
    /// connection ends before or it is too long.
    pub(super) async fn head(&self) -> Vec<u8> {
        let mut stream = self.stream.clone();
        let mut looked = 0;
        loop {
            {
                let ahead = self.ahead();
                let found = ahead[looked..].windows(4).position(|bytes| bytes == b"\r\n\r\n");
                if let Some(at) = found {
                    return ahead[..looked + at + 4].to_vec();
                }
                looked = ahead.len().saturating_sub(3);
                if ahead.len() > HEAD_MAX {
                    return Vec::new();
                }
            }
            let mut buffer = [0; 4_096];
            match stream.read(&mut buffer).await {
                Ok(length @ 1..) => self.ahead().extend_from_slice(&buffer[..length]),
                Ok(_) | Err(_) => return Vec::new(),
            }
        }
    }

    /// Consumes so many bytes of what was looked at.
    pub(super) fn consume(&self, length: usize) {
        let mut ahead = self.ahead();
        let length = length.min(ahead.len());
        ahead.drain(..length);
    }

    /// Whether bytes wait here that came with the ones before.
    pub(super) fn has_more(&self) -> bool {
        !self.ahead().is_empty()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut ahead = this.ahead();
        if ahead.is_empty() {
            drop(ahead);
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let length = ahead.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ahead[..length]);
        ahead.drain(..length);
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(context)
    }
}
