//! Takes the chunked coding off a body, piece by piece as it is read. Strict: what is not exactly
//! `size CRLF data CRLF`, or carries extensions or trailers, which our backend never sends, is an
//! error.

/// Where in the chunked coding the next byte lies.
#[derive(Default)]
enum At {
    #[default]
    SizeStart,
    Size(usize),
    SizeLf(usize),
    Data(usize),
    DataCr,
    DataLf,
    EndCr,
    EndLf,
    Done,
}

/// A decoder of one body.
#[derive(Default)]
pub struct Chunks {
    at: At,
}

impl Chunks {
    /// Decodes `bytes`, hands the data to `data`, and says whether the body has ended.
    pub fn feed<E: From<String>>(
        &mut self,
        mut bytes: &[u8],
        mut data: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        while let Some(&byte) = bytes.first() {
            if let At::Data(left) = self.at {
                let piece = &bytes[..left.min(bytes.len())];
                data(piece)?;
                bytes = &bytes[piece.len()..];
                self.at = match left - piece.len() {
                    0 => At::DataCr,
                    left => At::Data(left),
                };
                continue;
            }
            bytes = &bytes[1..];
            self.at = match (&self.at, byte) {
                (At::SizeStart, byte) => At::Size(digit(byte)?),
                (At::Size(size), b'\r') => At::SizeLf(*size),
                (At::Size(size), byte) if *size < 1 << 24 => At::Size(size * 16 + digit(byte)?),
                (At::SizeLf(0), b'\n') => At::EndCr,
                (At::SizeLf(size), b'\n') => At::Data(*size),
                (At::DataCr, b'\r') => At::DataLf,
                (At::DataLf, b'\n') => At::SizeStart,
                (At::EndCr, b'\r') => At::EndLf,
                (At::EndLf, b'\n') => At::Done,
                _ => {
                    return Err(format!("unexpected byte {byte:#04x} in the chunked coding").into());
                }
            };
        }
        Ok(matches!(self.at, At::Done))
    }
}

fn digit(byte: u8) -> Result<usize, String> {
    match char::from(byte).to_digit(16) {
        Some(digit) => Ok(digit as usize),
        None => Err(format!("unexpected byte {byte:#04x} in a chunk size")),
    }
}

#[cfg(test)]
mod tests {
    use super::Chunks;

    fn check(input: &[u8], expected: Result<&[u8], ()>) {
        for cut in 0..input.len() {
            let (mut chunks, mut out) = (Chunks::default(), Vec::new());
            let mut feed = |bytes| {
                chunks.feed::<String>(bytes, |piece| {
                    out.extend_from_slice(piece);
                    Ok(())
                })
            };
            let done = feed(&input[..cut]).and_then(|_| feed(&input[cut..]));
            match expected {
                Ok(body) => {
                    assert_eq!(done, Ok(true), "cut at {cut}");
                    assert_eq!(out, body, "cut at {cut}");
                }
                Err(()) => assert_ne!(done, Ok(true), "cut at {cut}"),
            }
        }
    }

    #[test]
    fn decodes_at_every_split() {
        check(b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", Ok(b"abc0123456789"));
        check(b"0\r\n\r\n", Ok(b""));
    }

    #[test]
    fn refuses_what_is_malformed_or_cut_short() {
        check(b"3\r\nabcd\r\n0\r\n\r\n", Err(()));
        check(b"3\nabc\r\n0\r\n\r\n", Err(()));
        check(b"3\r\nabc\r\n0\r\n\r\nx", Err(()));
        check(b"3\r\nabc\r\n0\r\n", Err(()));
    }
}
