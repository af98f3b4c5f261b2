//! A reader of HTTP/1.x messages that shares nothing with the proxy's.
//!
//! Knows only what the runs of this test send; asserts on everything else.

/// One message, as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) start: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<String>,
    /// Whether its framing says that it is all there.
    pub(crate) complete: bool,
    /// Whether it goes on until the connection ends.
    pub(crate) until_close: bool,
    /// How many bytes it took.
    pub(crate) len: usize,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn status(&self) -> u16 {
        let digits = self.start.split(' ').nth(1).unwrap_or_else(|| panic!("{}", self.start));
        digits.parse().unwrap_or_else(|_| panic!("{}", self.start))
    }
}

fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let at = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let text = std::str::from_utf8(&bytes[..at]).expect("text in a line");
    assert!(!text.contains(['\r', '\n']), "{text:?}");
    Some((text, &bytes[at + 2..]))
}

/// The message at the front of `bytes`; `None` while its head is not all there. `bodiless` says
/// that it has no body whatever its headers say; `request`, that it has none if they do not say.
pub(crate) fn parse(bytes: &[u8], bodiless: bool, request: bool) -> Option<Message> {
    let mut message = Message::default();
    let (start, mut rest) = line(bytes)?;
    message.start = start.to_string();
    loop {
        let (text, behind) = line(rest)?;
        rest = behind;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(": ").unwrap_or_else(|| panic!("{text:?}"));
        message.headers.push((name.to_string(), value.to_string()));
    }
    let length = message.header("content-length").map(|value| value.parse().expect("a length"));
    let chunked = message.header("transfer-encoding").is_some_and(|value| value == "chunked");
    assert!(!(chunked && length.is_some()), "{message:?}");
    let no_body = bodiless || (!request && matches!(message.status(), 100..=199 | 204 | 304));
    let behind = if no_body {
        message.complete = true;
        rest
    } else if chunked {
        read_chunks(&mut message, rest)
    } else if let Some(length) = length {
        let got: usize = rest.len().min(length);
        message.body = rest[..got].to_vec();
        message.complete = got == length;
        &rest[got..]
    } else if request {
        message.complete = true;
        rest
    } else {
        message.body = rest.to_vec();
        message.until_close = true;
        &[]
    };
    message.len = bytes.len() - behind.len();
    Some(message)
}

fn read_chunks<'a>(message: &mut Message, mut rest: &'a [u8]) -> &'a [u8] {
    loop {
        let Some((size, behind)) = line(rest) else { return &[] };
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("chunk {size:?}"));
        rest = behind;
        if size == 0 {
            break;
        }
        let got = rest.len().min(size);
        message.body.extend_from_slice(&rest[..got]);
        rest = &rest[got..];
        if rest.len() < 2 {
            return &[];
        }
        assert_eq!(&rest[..2], b"\r\n", "behind a chunk");
        rest = &rest[2..];
    }
    loop {
        let Some((field, behind)) = line(rest) else { return &[] };
        rest = behind;
        if field.is_empty() {
            message.complete = true;
            return rest;
        }
        message.trailers.push(field.to_string());
    }
}
