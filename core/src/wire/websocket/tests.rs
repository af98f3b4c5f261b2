//! What comes out of frames, however they are cut, and what our own frames say.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use rstest::rstest;
use std::{format, string::ToString, vec};

const LIMIT: usize = 70_000;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

type Read = (Vec<Message>, Option<Close>);

/// Also asserts that one call takes one frame at most: none yields two messages.
fn feed(masked: bool, pieces: &[&[u8]]) -> Read {
    let mut reader = MessageReader::new(masked, LIMIT);
    let mut messages = Vec::new();
    for piece in pieces {
        let mut at = 0;
        while at < piece.len() {
            match reader.read(&piece[at..]) {
                Ok((used, message)) => {
                    assert!(used > 0 && at + used <= piece.len());
                    at += used;
                    messages.extend(message);
                }
                Err(close) => {
                    assert_eq!(reader.read(b"\x81\x00"), Err(close), "it stays");
                    return (messages, Some(close));
                }
            }
        }
    }
    (messages, None)
}

/// Feeds `bytes` whole, byte by byte, at every split, and with bytes behind.
fn check(masked: bool, bytes: &[u8]) -> Read {
    let whole = feed(masked, &[bytes]);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(feed(masked, &single), whole, "byte by byte");
    for split in 1..bytes.len() {
        assert_eq!(feed(masked, &[&bytes[..split], &bytes[split..]]), whole, "at {split}");
    }
    let behind = [bytes, if masked { b"\x89\x80abcd" } else { b"\x89\0" }].concat();
    let more = feed(masked, &[&behind]);
    assert!(more.0.starts_with(&whole.0) && more.0.len() <= whole.0.len() + 1);
    whole
}

fn said(text: &str) -> Message {
    Message::Text(text.to_string())
}

fn closes(code: Option<u16>, reason: &str) -> Message {
    Message::Close { code, reason: reason.to_string() }
}

#[rstest]
// The examples of section 5.7.
#[case::text(false, b"\x81\x05Hello", vec![said("Hello")])]
#[case::masked_text(true, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", vec![said("Hello")])]
#[case::fragments(false, b"\x01\x03Hel\x80\x02lo", vec![said("Hello")])]
#[case::ping(false, b"\x89\x05Hello", vec![Message::Ping(b"Hello".to_vec())])]
#[case::masked_pong(
    true,
    b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
    vec![Message::Pong(b"Hello".to_vec())]
)]
#[case::nothing(false, b"", vec![])]
#[case::half_a_frame(false, b"\x81\x05Hel", vec![])]
#[case::empty(false, b"\x81\0", vec![said("")])]
#[case::empty_masked(true, b"\x81\x80\x37\xfa\x21\x3d", vec![said("")])]
#[case::two(false, b"\x81\x01a\x81\x01b", vec![said("a"), said("b")])]
#[case::binary(false, b"\x82\x02\xff\0", vec![Message::Binary(b"\xff\0".to_vec())])]
#[case::empty_fragments(false, b"\x02\0\0\0\0\x01a\x80\0", vec![Message::Binary(b"a".to_vec())])]
#[case::control_between(
    false,
    b"\x01\x01a\x89\x01p\x00\x01b\x8a\0\x80\x01c",
    vec![Message::Ping(b"p".to_vec()), Message::Pong(vec![]), said("abc")]
)]
#[case::close_between(false, b"\x01\x01a\x88\0\x80\x01b", vec![closes(None, "")])]
#[case::character_in_two_fragments(false, b"\x01\x01\xc3\x80\x01\xa9", vec![said("é")])]
#[case::mask_differs_by_fragment(
    true,
    b"\x01\x81\x01\0\0\0`\x80\x81\x02\0\0\0`",
    vec![said("ab")]
)]
#[case::close(false, b"\x88\x05\x03\xe8bye", vec![closes(Some(1000), "bye")])]
#[case::close_without_reason(false, b"\x88\x02\x0f\xa0", vec![closes(Some(4000), "")])]
#[case::close_without_code(false, b"\x88\0", vec![closes(None, "")])]
#[case::nothing_counts_behind_a_close(false, b"\x88\0\xff\xff\x81\x01a", vec![closes(None, "")])]
fn messages_are_found(#[case] masked: bool, #[case] bytes: &[u8], #[case] expected: Vec<Message>) {
    assert_eq!(check(masked, bytes), (expected, None));
}

#[rstest]
#[case::reserved_bit(false, b"\x81\x01a\xc1\x01a", 1, 1002)]
#[case::unknown_data(false, b"\x83\0", 0, 1002)]
#[case::unknown_control(false, b"\x8b\0", 0, 1002)]
#[case::client_without_mask(true, b"\x81\x01a", 0, 1002)]
#[case::server_with_mask(false, b"\x81\x81abcde", 0, 1002)]
#[case::nothing_to_continue(false, b"\x80\x01a", 0, 1002)]
#[case::continued_behind_the_end(false, b"\x81\x01a\x80\x01a", 1, 1002)]
#[case::message_in_a_message(false, b"\x01\x01a\x81\x01b", 0, 1002)]
#[case::fragmented_ping(false, b"\x09\0", 0, 1002)]
#[case::long_ping(false, b"\x89\x7e\0\x7e", 0, 1002)]
#[case::longer_ping(false, b"\x89\x7f\0", 0, 1002)]
#[case::two_bytes_for_a_short_length(false, b"\x81\x7e\0\x7d", 0, 1002)]
#[case::eight_bytes_for_a_short_length(false, b"\x81\x7f\0\0\0\0\0\0\xff\xff", 0, 1002)]
#[case::high_bit(false, b"\x81\x7f\x80\0\0\0\0\x01\0\0", 0, 1002)]
#[case::half_a_code(false, b"\x88\x01\x03", 0, 1002)]
#[case::code_below_all(false, b"\x88\x02\x03\xe7", 0, 1002)]
#[case::code_reserved(false, b"\x88\x02\x03\xec", 0, 1002)]
#[case::code_for_none(false, b"\x88\x02\x03\xed", 0, 1002)]
#[case::code_for_an_end_without(false, b"\x88\x02\x03\xee", 0, 1002)]
#[case::code_of_tls(false, b"\x88\x02\x03\xf7", 0, 1002)]
#[case::code_of_nobody(false, b"\x88\x02\x07\xd0", 0, 1002)]
#[case::code_above_all(false, b"\x88\x02\x13\x88", 0, 1002)]
#[case::text_not_utf8(false, b"\x81\x01\xff", 0, 1007)]
#[case::text_cut_in_a_character(false, b"\x01\x01a\x80\x01\xc3", 0, 1007)]
#[case::surrogate(false, b"\x81\x03\xed\xa0\x80", 0, 1007)]
#[case::reason_not_utf8(false, b"\x88\x03\x03\xe8\xff", 0, 1007)]
#[case::all_there_is(false, b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", 0, 1009)]
#[case::one_too_many(false, b"\x82\x7f\0\0\0\0\0\x01\x11\x71", 0, 1009)]
#[case::too_many_together(false, b"\x02\x01a\x80\x7f\0\0\0\0\0\x01\x11\x70", 0, 1009)]
fn faults_are_found(
    #[case] masked: bool,
    #[case] bytes: &[u8],
    #[case] before: usize,
    #[case] code: u16,
) {
    let (messages, close) = check(masked, bytes);
    assert_eq!((messages.len(), close.map(|close| close.code)), (before, Some(code)));
}

#[test]
fn a_control_frame_may_come_when_the_message_is_full() {
    let mut bytes = Vec::new();
    frame(&mut bytes, BINARY, &[7; LIMIT], None);
    bytes[0] = BINARY;
    pong(&mut bytes, &[8; 125], None);
    bytes.extend_from_slice(b"\x80\0");
    let expected = vec![Message::Pong(vec![8; 125]), Message::Binary(vec![7; LIMIT])];
    assert_eq!(feed(false, &[&bytes]), (expected, None));
}

#[test]
fn nothing_is_allocated_for_a_promise() {
    let mut reader = MessageReader::new(false, usize::MAX);
    let read = reader.read(b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xffabc");
    assert_eq!(read, Ok((13, None)));
    assert!(reader.data.capacity() < 100);
}

#[rstest]
#[case::of_the_rfc(b"dGhlIHNhbXBsZSBub25jZQ==", true)]
#[case::bits_behind(b"dGhlIHNhbXBsZSBub25jZR==", true)]
#[case::empty(b"", false)]
#[case::no_padding(b"dGhlIHNhbXBsZSBub25jZQ", false)]
#[case::fifteen(b"dGhlIHNhbXBsZSBub25j", false)]
#[case::seventeen(b"dGhlIHNhbXBsZSBub25jZWE=", false)]
#[case::eighteen(b"dGhlIHNhbXBsZSBub25jZWFh", false)]
#[case::other_alphabet(b"dGhlIHNhbXBsZSBub25j_-==", false)]
#[case::space(b"dGhlIHNhbXBsZSBub25jZ ==", false)]
fn keys(#[case] key: &[u8], #[case] valid: bool) {
    assert_eq!(is_key(key), valid);
}

#[test]
fn the_rfc_s_key_is_accepted() {
    assert_eq!(&accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[rstest]
#[case::empty(0, b"\x81\0")]
#[case::short(125, b"\x81\x7d")]
#[case::two_bytes(126, b"\x81\x7e\0\x7e")]
#[case::most_of_two_bytes(65_535, b"\x81\x7e\xff\xff")]
#[case::eight_bytes(65_536, b"\x81\x7f\0\0\0\0\0\x01\0\0")]
fn heads_are_as_short_as_can_be(#[case] length: usize, #[case] head: &[u8]) {
    let content = "x".repeat(length);
    let mut out = Vec::new();
    text(&mut out, &content, None);
    assert_eq!(out, [head, content.as_bytes()].concat());
    let mut masked = Vec::new();
    text(&mut masked, &content, Some(MASK));
    assert_eq!(masked.len(), out.len() + 4);
    assert_eq!(feed(true, &[&masked]), (vec![said(&content)], None));
}

#[rstest]
#[case::both(Some(1000), "bye", b"\x88\x05\x03\xe8bye")]
#[case::code(Some(1009), "", b"\x88\x02\x03\xf1")]
#[case::neither(None, "lost", b"\x88\0")]
fn close_frames(#[case] code: Option<u16>, #[case] reason: &str, #[case] expected: &[u8]) {
    let mut out = Vec::new();
    close(&mut out, code, reason, None);
    assert_eq!(out, expected);
}

#[test]
fn what_does_not_fit_into_a_control_frame_is_cut() {
    let mut out = Vec::new();
    close(&mut out, Some(1000), &format!("a{}", "é".repeat(100)), Some(MASK));
    pong(&mut out, &[1; 126], Some(MASK));
    let reason = format!("a{}", "é".repeat(61));
    let expected = vec![closes(Some(1000), &reason)];
    assert_eq!(feed(true, &[&out]), (expected, None));
    assert_eq!(out.len(), 6 + 125 + 6 + 125);
}

proptest! {
    #[test]
    fn what_is_sent_is_read(
        texts in vec(".{0,200}", 0..5),
        mask in proptest::option::of(any::<[u8; 4]>()),
        sizes in vec(1_usize..50, 1..20),
    ) {
        let mut out = Vec::new();
        let mut expected = Vec::new();
        for content in &texts {
            text(&mut out, content, mask);
            pong(&mut out, content.get(..3).unwrap_or_default().as_bytes(), mask);
            expected.push(said(content));
            let payload = content.get(..3).unwrap_or_default().as_bytes().to_vec();
            expected.push(Message::Pong(payload));
        }
        let mut pieces = Vec::new();
        let mut rest = &out[..];
        for size in sizes.iter().cycle() {
            let (piece, behind) = rest.split_at((*size).min(rest.len()));
            if piece.is_empty() {
                break;
            }
            pieces.push(piece);
            rest = behind;
        }
        prop_assert_eq!(feed(mask.is_some(), &pieces), (expected, None));
    }

    #[test]
    fn any_bytes_mean_the_same_however_they_are_cut(
        masked: bool,
        bytes in vec(prop_oneof![any::<u8>(), 0x80..=0x8a_u8, 0..4_u8], 0..60),
    ) {
        check(masked, &bytes);
    }
}
