//! Where a message ends: framing by length, by chunks, or by the end of the connection.
//!
//! Owns the rules of RFC 9112 sections 6 and 7; sees a body only as byte counts and never copies
//! it. Knows nothing of what a body means, nor of who reads it.

use alloc::vec::Vec;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunks, the last of which is empty, and a trailer section.
    Chunked,
    /// Everything until the peer closes its side; answers only.
    UntilClose,
}

/// Why a body cannot be read; each is ambiguous or malformed by RFC 9112.
pub type BodyError = &'static str;

/// What the next bytes of a message are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the body.
    Data,
    /// Chunk sizes, line ends and the last chunk: passed on where the reader's peer wants chunks.
    Framing,
    /// Chunk extensions and raw trailer lines: what we do not understand we never forward.
    Dropped,
}

/// A run of bytes of one kind at the front of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many bytes.
    pub len: usize,
    /// What they are.
    pub kind: Kind,
    /// Whether the message ends behind them.
    pub end: bool,
}

/// All extensions of one message, in bytes. Nobody uses them; a peer that sends more is wasting
/// our time on purpose.
const EXTENSION_BYTES_MAX: u32 = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a body of known length: bytes left.
    Length(u64),
    UntilClose,
    /// In the digits of a chunk size.
    Size {
        value: u64,
        digits: u8,
    },
    Extension,
    /// Behind the CR of a chunk size line.
    SizeEnd {
        value: u64,
    },
    /// In a chunk: bytes left.
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    /// At the start of the line behind the last chunk, where most messages end.
    Last,
    LastLf,
    /// In trailer fields, kept until they are complete.
    Trailers,
    Done,
}

/// Follows one message's body to its end.
#[derive(Debug)]
pub struct BodyReader {
    state: State,
    /// The size under way while its extension is skipped.
    size: u64,
    extension_bytes: u32,
    trailers: Vec<u8>,
    trailer_bytes_max: usize,
}

impl BodyReader {
    /// A reader at the first byte of a body. `trailer_bytes_max` limits the trailer section.
    pub const fn new(framing: Framing, trailer_bytes_max: usize) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(bytes) => State::Length(bytes),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, size: 0, extension_bytes: 0, trailers: Vec::new(), trailer_bytes_max }
    }

    /// Whether the message is over.
    pub const fn done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the end of the connection is a proper end of the message.
    pub const fn may_close(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// The raw trailer section, with the line end behind each field but not the empty line that
    /// ends it. Not yet validated: see [`forward::trailers`](super::forward::trailers).
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Says what the bytes at the front of `bytes` are. `bytes` must not be empty, and the message
    /// must not be over. Call again with what lies behind the step.
    ///
    /// # Errors
    ///
    /// Says what is malformed; the message cannot be read further.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Step, BodyError> {
        match self.state {
            State::Length(left) => {
                let len = clamp(left, bytes.len());
                let left = left - len as u64;
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                Ok(Step { len, kind: Kind::Data, end: left == 0 })
            }
            State::UntilClose => Ok(Step { len: bytes.len(), kind: Kind::Data, end: false }),
            State::Chunk(left) => {
                let len = clamp(left, bytes.len());
                let left = left - len as u64;
                self.state = if left == 0 { State::ChunkCr } else { State::Chunk(left) };
                Ok(Step { len, kind: Kind::Data, end: false })
            }
            State::Extension => self.extension(bytes),
            State::Trailers => self.trailer(bytes),
            State::Size { .. }
            | State::SizeEnd { .. }
            | State::ChunkCr
            | State::ChunkLf
            | State::Last
            | State::LastLf => self.framing(bytes),
            State::Done => Ok(Step { len: 0, kind: Kind::Framing, end: true }),
        }
    }

    /// Everything between the data of two chunks, as one run.
    fn framing(&mut self, bytes: &[u8]) -> Result<Step, BodyError> {
        for (at, &byte) in bytes.iter().enumerate() {
            self.state = match (self.state, byte) {
                (State::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                    if digits == 16 {
                        return Err("a chunk size has more than 16 digits");
                    }
                    let digit = (byte as char).to_digit(16).map_or(0, u64::from);
                    State::Size { value: value << 4 | digit, digits: digits + 1 }
                }
                (State::Size { digits: 0, .. }, _) => return Err("a chunk size is missing"),
                (State::Size { value, .. }, b'\r') => State::SizeEnd { value },
                (State::Size { value, .. }, b';') => {
                    self.size = value;
                    self.state = State::Extension;
                    if at == 0 {
                        return self.extension(bytes);
                    }
                    return Ok(Step { len: at, kind: Kind::Framing, end: false });
                }
                (State::Size { .. }, _) => {
                    return Err("a chunk size holds a byte that is no digit");
                }
                (State::SizeEnd { value: 0 }, b'\n') => State::Last,
                (State::SizeEnd { value }, b'\n') => {
                    self.state = State::Chunk(value);
                    return Ok(Step { len: at + 1, kind: Kind::Framing, end: false });
                }
                (State::SizeEnd { .. }, _) => return Err("a chunk size line ends in a bare CR"),
                (State::ChunkCr, b'\r') => State::ChunkLf,
                (State::ChunkLf, b'\n') => State::Size { value: 0, digits: 0 },
                (State::ChunkCr | State::ChunkLf, _) => {
                    return Err("a chunk is longer than its size");
                }
                (State::Last, b'\r') => State::LastLf,
                (State::Last, _) => {
                    self.state = State::Trailers;
                    if at == 0 {
                        return self.trailer(bytes);
                    }
                    return Ok(Step { len: at, kind: Kind::Framing, end: false });
                }
                (State::LastLf, b'\n') => {
                    self.state = State::Done;
                    return Ok(Step { len: at + 1, kind: Kind::Framing, end: true });
                }
                (State::LastLf, _) => return Err("the last line of a chunked body is a bare CR"),
                (
                    State::Length(_)
                    | State::UntilClose
                    | State::Extension
                    | State::Chunk(_)
                    | State::Trailers
                    | State::Done,
                    _,
                ) => {
                    return Ok(Step { len: at, kind: Kind::Framing, end: false });
                }
            };
        }
        Ok(Step { len: bytes.len(), kind: Kind::Framing, end: false })
    }

    fn extension(&mut self, bytes: &[u8]) -> Result<Step, BodyError> {
        for (at, &byte) in bytes.iter().enumerate() {
            match byte {
                b'\r' => {
                    // The line end belongs to the size again.
                    self.state = State::SizeEnd { value: self.size };
                    if at == 0 {
                        let rest = self.framing(&bytes[1..])?;
                        return Ok(Step { len: rest.len + 1, ..rest });
                    }
                    // The CR is passed on, so it is left for the next step, which must know.
                    self.state = State::Extension;
                    return Ok(Step { len: at, kind: Kind::Dropped, end: false });
                }
                b'\t' | b' '..=b'~' | 0x80..=0xff => {
                    self.extension_bytes += 1;
                    if self.extension_bytes > EXTENSION_BYTES_MAX {
                        return Err("the chunk extensions exceed 16 KiB");
                    }
                }
                _ => return Err("a chunk extension holds a control character"),
            }
        }
        Ok(Step { len: bytes.len(), kind: Kind::Dropped, end: false })
    }

    fn trailer(&mut self, bytes: &[u8]) -> Result<Step, BodyError> {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.trailers.len() >= self.trailer_bytes_max {
                return Err("the trailer section is too long");
            }
            self.trailers.push(byte);
            if byte == b'\n' {
                if !self.trailers.ends_with(b"\r\n") {
                    return Err("a trailer line ends in a bare LF");
                }
                if self.trailers.ends_with(b"\r\n\r\n") {
                    let fields = self.trailers.len() - 2;
                    self.trailers.truncate(fields);
                    self.state = State::Done;
                    return Ok(Step { len: at + 1, kind: Kind::Dropped, end: true });
                }
            }
        }
        Ok(Step { len: bytes.len(), kind: Kind::Dropped, end: false })
    }
}

fn clamp(left: u64, available: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(available)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::string::{String, ToString};

    #[derive(Debug, Default, PartialEq, Eq, Clone)]
    struct Read {
        data: Vec<u8>,
        passed: Vec<u8>,
        trailers: String,
        used: usize,
        done: bool,
    }

    fn feed(framing: Framing, pieces: &[&[u8]]) -> Result<Read, BodyError> {
        let mut reader = BodyReader::new(framing, 100);
        let mut read = Read::default();
        for piece in pieces {
            let mut at = 0;
            while at < piece.len() && !reader.done() {
                let step = reader.read(&piece[at..])?;
                assert!(step.len > 0 && at + step.len <= piece.len(), "{step:?}");
                assert_eq!(step.end, reader.done());
                let bytes = &piece[at..at + step.len];
                match step.kind {
                    Kind::Data => {
                        read.data.extend_from_slice(bytes);
                        read.passed.extend_from_slice(bytes);
                    }
                    Kind::Framing => read.passed.extend_from_slice(bytes),
                    Kind::Dropped => {}
                }
                at += step.len;
            }
            read.used += at;
        }
        read.done = reader.done();
        read.trailers = String::from_utf8_lossy(reader.trailers()).to_string();
        Ok(read)
    }

    /// Feeds `bytes` whole, byte by byte, at every split, and with bytes behind.
    fn check(framing: Framing, bytes: &[u8]) -> Result<Read, BodyError> {
        let whole = feed(framing, &[bytes]);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(feed(framing, &single), whole, "byte by byte");
        for split in 1..bytes.len() {
            assert_eq!(feed(framing, &[&bytes[..split], &bytes[split..]]), whole, "at {split}");
        }
        if let Ok(read) = &whole
            && read.done
        {
            let mut more = bytes.to_vec();
            more.extend_from_slice(b"GET / HTTP/1.1\r\n");
            assert_eq!(feed(framing, &[&more]).as_ref(), Ok(read), "with bytes behind");
        }
        whole
    }

    #[rstest]
    #[case::one(b"3\r\nabc\r\n0\r\n\r\n", "abc", "3\r\nabc\r\n0\r\n\r\n", "")]
    #[case::two(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "abc", "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "")]
    #[case::empty(b"0\r\n\r\n", "", "0\r\n\r\n", "")]
    #[case::zeros(b"000\r\n\r\n", "", "000\r\n\r\n", "")]
    #[case::hex(
        b"0A\r\n0123456789\r\n0\r\n\r\n",
        "0123456789",
        "0A\r\n0123456789\r\n0\r\n\r\n",
        ""
    )]
    #[case::crlf_in_data(
        b"4\r\n\r\n\r\n\r\n0\r\n\r\n",
        "\r\n\r\n",
        "4\r\n\r\n\r\n\r\n0\r\n\r\n",
        ""
    )]
    #[case::extension(b"3;a=\"b\"\r\nabc\r\n0;z\r\n\r\n", "abc", "3\r\nabc\r\n0\r\n\r\n", "")]
    #[case::empty_extension(b"3;\r\nabc\r\n0\r\n\r\n", "abc", "3\r\nabc\r\n0\r\n\r\n", "")]
    #[case::trailers(
        b"1\r\na\r\n0\r\nx: 1\r\ny: 2\r\n\r\n",
        "a",
        "1\r\na\r\n0\r\n",
        "x: 1\r\ny: 2\r\n"
    )]
    fn chunked_bodies(
        #[case] bytes: &[u8],
        #[case] data: &str,
        #[case] passed: &str,
        #[case] trailers: &str,
    ) {
        let read = check(Framing::Chunked, bytes).expect("well formed");
        assert!(read.done);
        assert_eq!(String::from_utf8_lossy(&read.data), data);
        assert_eq!(String::from_utf8_lossy(&read.passed), passed);
        assert_eq!(read.trailers, trailers);
        assert_eq!(read.used, bytes.len());
    }

    #[rstest]
    #[case::no_digits(b"\r\nabc", "a chunk size is missing")]
    #[case::sign(b"+3\r\nabc", "a chunk size is missing")]
    #[case::prefix(b"0x3\r\nabc", "a chunk size holds a byte that is no digit")]
    #[case::space_before(b" 3\r\nabc", "a chunk size is missing")]
    #[case::space_behind(b"3 \r\nabc", "a chunk size holds a byte that is no digit")]
    #[case::space_before_extension(b"3 ;a\r\nabc", "a chunk size holds a byte that is no digit")]
    #[case::bare_lf(b"3\nabc", "a chunk size holds a byte that is no digit")]
    #[case::bare_cr(b"3\rabc", "a chunk size line ends in a bare CR")]
    #[case::overflow(b"10000000000000000\r\n", "a chunk size has more than 16 digits")]
    #[case::too_long(b"3\r\nabcd\r\n0\r\n\r\n", "a chunk is longer than its size")]
    #[case::data_ends_in_lf(b"3\r\nabc\n0\r\n\r\n", "a chunk is longer than its size")]
    #[case::data_ends_in_cr(b"3\r\nabc\r0\r\n\r\n", "a chunk is longer than its size")]
    #[case::lf_in_extension(b"3;a\nabc", "a chunk extension holds a control character")]
    #[case::cr_in_extension(b"3;a\rb\r\nabc", "a chunk size line ends in a bare CR")]
    #[case::cr_at_the_end(b"0\r\n\rx", "the last line of a chunked body is a bare CR")]
    #[case::bare_lf_in_trailers(b"0\r\nx: 1\n\r\n", "a trailer line ends in a bare LF")]
    #[case::underscore(b"1_0\r\n", "a chunk size holds a byte that is no digit")]
    fn malformed_chunks_are_refused(#[case] bytes: &[u8], #[case] error: &str) {
        assert_eq!(check(Framing::Chunked, bytes), Err(error));
    }

    #[test]
    fn long_trailers_and_extensions_are_refused() {
        let mut trailers = b"0\r\nx: ".to_vec();
        trailers.extend_from_slice(&[b'a'; 200]);
        assert_eq!(
            feed(Framing::Chunked, &[&trailers]).map(|_| ()),
            Err("the trailer section is too long")
        );
        let mut extensions = b"1;".to_vec();
        extensions.extend_from_slice(&[b'a'; 17 << 10]);
        assert_eq!(
            feed(Framing::Chunked, &[&extensions]).map(|_| ()),
            Err("the chunk extensions exceed 16 KiB")
        );
    }

    #[rstest]
    #[case::length(Framing::Length(3), b"abc", true)]
    #[case::short(Framing::Length(5), b"abc", false)]
    #[case::until_close(Framing::UntilClose, b"abc", false)]
    fn unchunked_bodies(#[case] framing: Framing, #[case] bytes: &[u8], #[case] done: bool) {
        let read = check(framing, bytes).expect("nothing to be malformed");
        assert_eq!((read.data.as_slice(), read.done), (b"abc".as_slice(), done));
    }

    #[test]
    fn an_end_of_the_connection_is_proper_only_where_it_ends_the_message() {
        assert!(BodyReader::new(Framing::UntilClose, 1).may_close());
        assert!(BodyReader::new(Framing::Length(0), 1).may_close());
        assert!(!BodyReader::new(Framing::Length(1), 1).may_close());
        assert!(!BodyReader::new(Framing::Chunked, 1).may_close());
    }
}
