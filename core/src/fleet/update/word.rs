//! Words: all that proxies say to each other, as it is published.
//!
//! Owns the kinds of words, how they are told apart, and what may be wrong with one. Does not know
//! how words travel.

use super::bytes::{Reader, put_field, put_hash};
use super::{ProxyId, Update};
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

const UPDATE: u8 = 1;
const ASK: u8 = 2;

/// Tags of a question.
const FROM: u8 = 1;
const TO: u8 = 2;

/// What one proxy publishes for all others, in one message each: a byte for its kind, and what that
/// kind consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// A proxy tells what it does, or a page of what it knows.
    Update(Update),
    /// A proxy asks another one for its snapshot, to be published for all.
    Ask {
        /// Who asks.
        from: ProxyId,
        /// Who is asked.
        to: ProxyId,
    },
}

impl Word {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Update(update) => {
                out.push(UPDATE);
                update.encode(out);
            }
            Self::Ask { from, to } => {
                out.push(ASK);
                put_field(out, FROM, |out| put_hash(out, from.0));
                put_field(out, TO, |out| put_hash(out, to.0));
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote, here or in another build.
    pub fn decode(bytes: &[u8]) -> Result<Self, UpdateError> {
        let mut reader = Reader::new(bytes);
        match reader.byte("a kind of word")? {
            UPDATE => Ok(Self::Update(Update::read(reader)?)),
            ASK => {
                let (mut from, mut to) = (None, None);
                while let Some((tag, mut field)) = reader.field()? {
                    let proxy = match tag {
                        FROM => &mut from,
                        TO => &mut to,
                        _ => continue,
                    };
                    *proxy = Some(ProxyId(field.hash("a proxy's number")?));
                    field.end()?;
                }
                let (Some(from), Some(to)) = (from, to) else {
                    return Err(reader.wrong("who asks and who is asked"));
                };
                Ok(Self::Ask { from, to })
            }
            kind => Err(UpdateError::UnknownKind { kind }),
        }
    }
}

/// Why bytes are no word. The first two are no fault: another proxy is of a build that says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateError {
    /// A kind of word that this build does not know.
    UnknownKind {
        /// Its byte.
        kind: u8,
    },
    /// An update in a layout that this build does not know.
    UnknownVersion {
        /// Its byte.
        version: u8,
    },
    /// It is damaged.
    Malformed {
        /// Where, from the first byte.
        offset: usize,
        /// What should have been there.
        expected: &'static str,
    },
}

impl fmt::Display for UpdateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind { kind } => write!(f, "word of unknown kind {kind}"),
            Self::UnknownVersion { version } => write!(f, "update of unknown version {version}"),
            Self::Malformed { offset, expected } => {
                write!(f, "malformed word at byte {offset}: expected {expected}")
            }
        }
    }
}

impl Error for UpdateError {}
