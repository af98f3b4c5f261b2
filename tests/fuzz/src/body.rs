//! Bodies: however one is cut it means the same, and what is passed on means it again.

use vllm_proxy_core::wire::body::{BodyReader, Framing, Kind};

#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    data: Vec<u8>,
    passed: Vec<u8>,
    trailers: Vec<u8>,
    used: usize,
    done: bool,
}

fn read(framing: Framing, pieces: &[&[u8]]) -> Result<Read, &'static str> {
    let mut reader = BodyReader::new(framing, 64);
    let mut read = Read::default();
    for piece in pieces {
        let mut at = 0;
        while at < piece.len() && !reader.done() {
            let step = reader.read(&piece[at..])?;
            assert!(step.len > 0 && at + step.len <= piece.len(), "{step:?}");
            assert_eq!(step.end, reader.done());
            let bytes = &piece[at..at + step.len];
            if step.kind == Kind::Data {
                read.data.extend_from_slice(bytes);
            }
            if step.kind != Kind::Dropped {
                read.passed.extend_from_slice(bytes);
            }
            at += step.len;
        }
        read.used += at;
    }
    read.done = reader.done();
    read.trailers = reader.trailers().to_vec();
    Ok(read)
}

/// Nothing panics, a body cut anywhere means what the whole one means, and what is passed on of
/// chunks is those chunks, without what was dropped. The first two bytes say how it is framed and
/// where it is cut.
pub fn body(data: &[u8]) {
    let [framing, cut, body @ ..] = data else { return };
    let framing = match framing {
        0..192 => Framing::Chunked,
        192..224 => Framing::Length(u64::from(framing - 192)),
        224..240 => Framing::UntilClose,
        _ => Framing::Empty,
    };
    let whole = read(framing, &[body]);
    let cut = usize::from(*cut) * (body.len() + 1) / 256;
    assert_eq!(read(framing, &[&body[..cut], &body[cut..]]), whole, "cut at {cut}");
    assert_eq!(read(framing, &body.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    let Ok(whole) = whole else { return };
    if framing == Framing::Chunked && whole.done {
        let mut passed = whole.passed;
        if !whole.trailers.is_empty() {
            passed.extend_from_slice(b"\r\n");
        }
        let again = read(framing, &[&passed]).expect("what is passed on is well formed");
        assert_eq!((again.data, again.used, again.done), (whole.data, passed.len(), true));
    }
}
