//! Websocket messages (RFC 6455): read frame by frame, and the few that we send ourselves.
//!
//! Owns frames, fragments, masks and close codes, and the key of a handshake; not its head. Knows
//! no extension, so none may be negotiated with whoever is read here, and nothing of what a
//! message says.

#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

/// A client may leave what it likes in the bits that the padding drops. Nobody reads them, and
/// vLLM's own server does not mind either.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Control frames carry no more (section 5.5).
const CONTROL_BYTES_MAX: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Whether a `Sec-WebSocket-Key` is what section 4.2.1 demands: 16 bytes in base64.
pub fn is_key(key: &[u8]) -> bool {
    // The decoder wants room for all that 24 digits could mean.
    key.len() == 24 && BASE64.decode_slice(key, &mut [0; 18]) == Ok(16)
}

/// The `Sec-WebSocket-Accept` that answers a key (section 4.2.2).
pub fn accept_key(key: &[u8]) -> [u8; 28] {
    let mut hash = sha1_smol::Sha1::from(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut accept = [0; 28];
    let written = BASE64.encode_slice(hash.digest().bytes(), &mut accept);
    debug_assert_eq!(written, Ok(accept.len()), "20 bytes are 28 digits");
    accept
}

/// Appends a text in one frame. A client gives a mask of its choice, a server gives none.
pub fn text(out: &mut Vec<u8>, text: &str, mask: Option<[u8; 4]>) {
    frame(out, TEXT, text.as_bytes(), mask);
}

/// Appends bytes in one frame, like [`text`].
pub fn binary(out: &mut Vec<u8>, data: &[u8], mask: Option<[u8; 4]>) {
    frame(out, BINARY, data, mask);
}

/// Appends the answer to a ping of this content.
pub fn pong(out: &mut Vec<u8>, payload: &[u8], mask: Option<[u8; 4]>) {
    frame(out, PONG, payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload), mask);
}

/// Appends a close frame. A reason that does not fit is cut; without a code there is none.
pub fn close(out: &mut Vec<u8>, code: Option<u16>, reason: &str, mask: Option<[u8; 4]>) {
    let mut payload = Vec::new();
    if let Some(code) = code {
        let reason = reason.get(..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2));
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.unwrap_or_default().as_bytes());
    }
    frame(out, CLOSE, &payload, mask);
}

/// What one side said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A text, put together from all its fragments.
    Text(String),
    /// Bytes, put together from all their fragments.
    Binary(Vec<u8>),
    /// To be answered by a pong of the same content.
    Ping(Vec<u8>),
    /// Answers a ping, or came unasked. It wants no answer.
    Pong(Vec<u8>),
    /// The side says no more, and wants the same said to it.
    Close {
        /// `None` where no code was given; no frame may say that as 1005.
        code: Option<u16>,
        /// For people.
        reason: String,
    },
}

/// Why what was sent cannot be read further, as the close frame that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// 1002, 1007 or 1009 (section 7.4.1).
    pub code: u16,
    /// In words.
    pub reason: &'static str,
}

/// Follows the frames of one side.
///
/// However they are cut, the same messages come out. It holds the message under way, up to the
/// limit, and never allocates what a length merely promises.
#[derive(Debug)]
pub struct MessageReader {
    /// Whether this side masks: clients must, servers must not (section 5.1).
    masked: bool,
    bytes_max: usize,
    state: State,
    /// Of the frame in hand.
    opcode: u8,
    /// Whether the frame in hand ends its message.
    fin: bool,
    /// Bytes of its payload that are due.
    left: usize,
    /// The mask as the next byte of the payload needs it.
    mask: [u8; 4],
    /// What the message under way is, if any: [`TEXT`] or [`BINARY`].
    message: Option<u8>,
    data: Vec<u8>,
    /// The payload of a control frame, which may come between fragments.
    control: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// The byte of the opcode is due.
    First,
    /// The byte of the length is due.
    Second,
    /// Bytes of a longer length are due: so many, after this value, which must become so much.
    Length {
        due: u8,
        value: u64,
        least: u64,
    },
    /// This byte of the mask is due.
    Mask(u8),
    Payload,
    /// Nothing is read behind a close frame or an error.
    Over(Result<(), Close>),
}

impl MessageReader {
    /// At the first byte behind a handshake. `masked` says that a client is read, not a server.
    /// Messages of more than `bytes_max` are refused.
    pub const fn new(masked: bool, bytes_max: usize) -> Self {
        Self {
            masked,
            bytes_max,
            state: State::First,
            opcode: CONTINUATION,
            fin: false,
            left: 0,
            mask: [0; 4],
            message: None,
            data: Vec::new(),
            control: Vec::new(),
        }
    }

    /// Refuses messages of more than `bytes_max` from the next frame on.
    pub const fn limit(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Reads on, up to the end of a frame at most. Returns how much that was, and the message that
    /// is now complete, if any. Call again with what lies behind. What follows a close frame is
    /// passed over (section 5.5.1).
    ///
    /// # Errors
    ///
    /// Says how to close; so will every later call.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Message>), Close> {
        if let State::Over(over) = self.state {
            return over.map(|()| (bytes.len(), None));
        }
        let read = self.frame(bytes);
        let over = match &read {
            Err(close) => Err(*close),
            Ok((_, Some(Message::Close { .. }))) => Ok(()),
            Ok(_) => return read,
        };
        self.state = State::Over(over);
        self.data = Vec::new();
        read
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<(usize, Option<Message>), Close> {
        let mut used = 0;
        while !matches!(self.state, State::Payload) {
            let Some(&byte) = bytes.get(used) else { return Ok((used, None)) };
            used += 1;
            self.state = self.head(byte)?;
        }
        let rest = bytes.get(used..).unwrap_or_default();
        let payload = rest.get(..self.left).unwrap_or(rest);
        self.payload(payload);
        let message = if self.left == 0 { self.end()? } else { None };
        Ok((used + payload.len(), message))
    }

    /// The next byte of a frame's head.
    fn head(&mut self, byte: u8) -> Result<State, Close> {
        match self.state {
            State::First => self.first(byte),
            State::Second => {
                if (byte & 0x80 != 0) != self.masked {
                    return Err(Close::protocol(match self.masked {
                        true => "a client's frame is not masked",
                        false => "a server's frame is masked",
                    }));
                }
                match byte & 0x7f {
                    126.. if self.is_control() => {
                        Err(Close::protocol("a control frame has more than 125 bytes"))
                    }
                    126 => Ok(State::Length { due: 2, value: 0, least: 126 }),
                    127 => Ok(State::Length { due: 8, value: 0, least: 1 << 16 }),
                    length => self.length(length.into()),
                }
            }
            State::Length { due, value, least } => {
                let (due, value) = (due - 1, value << 8 | u64::from(byte));
                match due {
                    1.. => Ok(State::Length { due, value, least }),
                    0 if value < least => Err(Close::protocol("a length takes too many bytes")),
                    0 if value >> 63 != 0 => Err(Close::protocol("a length has its high bit set")),
                    0 => self.length(value),
                }
            }
            State::Mask(at) => {
                if let Some(place) = self.mask.get_mut(usize::from(at)) {
                    *place = byte;
                }
                Ok(if at < 3 { State::Mask(at + 1) } else { State::Payload })
            }
            state @ (State::Payload | State::Over(_)) => Ok(state),
        }
    }

    fn first(&mut self, byte: u8) -> Result<State, Close> {
        self.fin = byte & 0x80 != 0;
        self.opcode = byte & 0x0f;
        if byte & 0x70 != 0 {
            return Err(Close::protocol("a frame has reserved bits set"));
        }
        match (self.opcode, self.message) {
            (CONTINUATION, None) => Err(Close::protocol("there is nothing to continue")),
            (TEXT | BINARY, Some(_)) => {
                Err(Close::protocol("a message begins inside a fragmented one"))
            }
            (TEXT | BINARY, None) => {
                self.message = Some(self.opcode);
                Ok(State::Second)
            }
            (CLOSE | PING | PONG, _) if !self.fin => {
                Err(Close::protocol("a control frame is fragmented"))
            }
            (CONTINUATION | CLOSE | PING | PONG, _) => Ok(State::Second),
            _ => Err(Close::protocol("a frame has an unknown opcode")),
        }
    }

    /// The length of the payload is known.
    fn length(&mut self, length: u64) -> Result<State, Close> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !self.is_control() && length > self.bytes_max.saturating_sub(self.data.len()) {
            return Err(Close { code: 1009, reason: "the message is too big" });
        }
        self.left = length;
        Ok(if self.masked { State::Mask(0) } else { State::Payload })
    }

    fn payload(&mut self, payload: &[u8]) {
        let message = if self.is_control() { &mut self.control } else { &mut self.data };
        let start = message.len();
        message.extend_from_slice(payload);
        self.left -= payload.len();
        if self.masked {
            unmask(message.get_mut(start..).unwrap_or_default(), self.mask);
            self.mask.rotate_left(payload.len() % 4);
        }
    }

    /// The frame in hand is all there.
    fn end(&mut self) -> Result<Option<Message>, Close> {
        self.state = State::First;
        if self.is_control() {
            let payload = core::mem::take(&mut self.control);
            return match self.opcode {
                PING => Ok(Some(Message::Ping(payload))),
                PONG => Ok(Some(Message::Pong(payload))),
                _ => closed(&payload).map(Some),
            };
        }
        if !self.fin {
            return Ok(None);
        }
        let data = core::mem::take(&mut self.data);
        if self.message.take() == Some(BINARY) {
            return Ok(Some(Message::Binary(data)));
        }
        let text = String::from_utf8(data);
        text.map(|text| Some(Message::Text(text))).map_err(|_| NOT_UTF8)
    }

    const fn is_control(&self) -> bool {
        self.opcode >= CLOSE
    }
}

const NOT_UTF8: Close = Close { code: 1007, reason: "a text is not UTF-8" };

impl Close {
    const fn protocol(reason: &'static str) -> Self {
        Self { code: 1002, reason }
    }
}

/// What a close frame says (section 5.5.1).
fn closed(payload: &[u8]) -> Result<Message, Close> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(Message::Close { code: None, reason: String::new() }),
            _ => Err(Close::protocol("a close frame has half a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    // Section 7.4 and the registry it founds: 1004 is reserved, 1005, 1006 and 1015 are never sent,
    // 1012 to 1014 were added later.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Close::protocol("a close frame has a code that must not be sent"));
    }
    let reason = core::str::from_utf8(reason).map_err(|_| NOT_UTF8)?;
    Ok(Message::Close { code: Some(code), reason: reason.into() })
}

/// Applies a mask, or takes it off.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let (fours, rest) = bytes.as_chunks_mut();
    for four in fours {
        *four = (u32::from_ne_bytes(*four) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

fn frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    match payload.len() {
        length @ ..126 => out.push(masked | length as u8),
        length @ ..0x1_0000 => {
            out.push(masked | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(masked | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[], |mask| mask));
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        unmask(out.get_mut(start..).unwrap_or_default(), mask);
    }
}
