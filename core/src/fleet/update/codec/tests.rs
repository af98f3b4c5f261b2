//! Updates as bytes: there and back, cut anywhere, with any byte changed, and with more in them
//! than is known.

use super::*;
use crate::fleet::Word;
use crate::time::Duration;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use proptest::collection::vec as list;
use proptest::option;
use proptest::prelude::*;
use rstest::rstest;

fn encoded(update: &Update) -> Vec<u8> {
    let mut out = Vec::new();
    update.encode(&mut out);
    out
}

/// With something of everything, in numbers that tell each other apart.
fn full() -> Update {
    let in_hand = InHand {
        in_flight: 3,
        queued: 300,
        resident: 70_000,
        head: Some(Head { age: Duration::from_micros(1_500), uncached: 128 }),
        first_token_age: Some(Duration::from_micros(127)),
    };
    let full = About {
        generation: 2,
        changes: 129,
        drains: 3,
        in_hand: Some(in_hand),
        inserted_tokens: 16_384,
        placed: vec![
            Placed { stamp: 9, chunks: vec![0x0102_0304_0506_0708, u64::MAX] },
            Placed { stamp: u32::MAX, chunks: vec![] },
        ],
        clock: Some(Clock {
            counters: vec![(ProxyId(5), 6), (ProxyId(7), 8)],
            inserted_tokens: 14,
            fresh_tokens: 1,
        }),
        lessons: vec![
            Lesson::Pace { work: 4_000_000, time: Duration::from_micros(500_000) },
            Lesson::Cached {
                promised_tokens: 640,
                cached_tokens: 512,
                chunk_tokens: 128,
                had_more: true,
            },
        ],
        owned: vec![
            Owned { response: 0x0807_0605_0403_0201, moves: 0, age: Duration::ZERO },
            Owned { response: 2, moves: 1, age: Duration::from_micros(128) },
        ],
        learned: Learned {
            pace: Average { samples: 100, value: 125_000 },
            trust: Average { samples: 1, value: 937 },
            capacity: Some(Capacity { samples: 2, start: 100_000, milli: 95_000_000 }),
            token_lengths: vec![(Arc::from("m"), Average { samples: 3, value: 4_000 })],
        },
        ..About::of(BackendName(0xa0a1_a2a3_a4a5_a6a7), 0)
    };
    let bare = About::of(BackendName(1), 0);
    let length = PromptLength { model: Arc::from("m/é"), bytes: 4_000, tokens: 1_000 };
    Update { proxy: ProxyId(11), number: 300, about: vec![full, bare], lengths: vec![length] }
}

#[test]
fn the_layout_stays() {
    let golden = [
        "01",                       // version
        "01 08 0b00000000000000",   // proxy
        "02 02 ac02",               // number
        "03 9e01",                  // a backend
        "  01 08 a7a6a5a4a3a2a1a0", //   its name
        "  02 01 02",               //   generation
        "  0c 02 8101",             //   changes
        "  11 01 03",               //   drains
        "  03 06 03 ac02 f0a204",   //   in flight, queued, resident
        "  04 04 dc0b 8001",        //   age of the head, its tokens
        "  05 01 7f",               //   age of the first token
        "  06 03 808001",           //   inserted
        "  07 11 09 0807060504030201 ffffffffffffffff",
        "  07 05 ffffffff0f", //   placed at other times
        "  08 14 0e 01 0500000000000000 06 0700000000000000 08",
        "  09 07 8092f401 a0c21e",   //   pace
        "  0a 07 8005 8004 8001 01", //   cached
        "  0b 15 0102030405060708 00 00 0200000000000000 01 8001",
        "  0d 04 64 c8d007",            //   pace as it was learned
        "  0e 03 01 a907",              //   trust
        "  0f 08 02 a08d06 c0aba62d",   //   capacity
        "  10 04 03 a01f 6d",           //   length of tokens
        "03 0a 01 08 0100000000000000", // a backend of which nothing is said
        "04 08 a01f e807 6d2fc3a9",     // bytes and tokens of a prompt
    ];
    let text: String = encoded(&full()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(text, golden.join("").replace(' ', ""));
    assert_eq!(Update::decode(&encoded(&full())), Ok(full()));
}

fn chance() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..300_u64, any::<u64>(), Just(u64::MAX)]
}

fn small() -> impl Strategy<Value = u32> {
    chance().prop_map(|number| number as u32)
}

fn amount() -> impl Strategy<Value = i64> {
    chance().prop_map(|number| (number >> 1).cast_signed())
}

fn time() -> impl Strategy<Value = Duration> {
    chance().prop_map(Duration::from_micros)
}

fn in_hand() -> impl Strategy<Value = InHand> {
    let head = (time(), amount()).prop_map(|(age, uncached)| Head { age, uncached });
    let drawn = (small(), amount(), amount(), option::of(head), option::of(time()));
    drawn.prop_map(|(in_flight, queued, resident, head, first_token_age)| InHand {
        in_flight,
        queued,
        resident,
        head,
        first_token_age,
    })
}

fn lesson() -> impl Strategy<Value = Lesson> {
    let pace = (amount(), time()).prop_map(|(work, time)| Lesson::Pace { work, time });
    let cached = (chance(), chance(), small(), any::<bool>());
    let cached = cached.prop_map(|(promised_tokens, cached_tokens, chunk_tokens, had_more)| {
        Lesson::Cached { promised_tokens, cached_tokens, chunk_tokens, had_more }
    });
    prop_oneof![pace, cached]
}

fn clock() -> impl Strategy<Value = Clock> {
    let counters = list((chance().prop_map(ProxyId), chance()), 0..5);
    (counters, chance(), chance()).prop_map(|(counters, inserted_tokens, fresh_tokens)| Clock {
        counters,
        inserted_tokens,
        fresh_tokens,
    })
}

fn average() -> impl Strategy<Value = Average> {
    (small(), chance()).prop_map(|(samples, value)| Average { samples, value })
}

fn about() -> impl Strategy<Value = About> {
    let placed = (small(), list(chance(), 0..5));
    let placed = placed.prop_map(|(stamp, chunks)| Placed { stamp, chunks });
    let model = "\\PC{0,9}".prop_map(|model| Arc::from(model.as_str()));
    let capacity = (small(), chance(), chance());
    let capacity = capacity.prop_map(|(samples, start, milli)| Capacity { samples, start, milli });
    let learned = (average(), average(), option::of(capacity), list((model, average()), 0..3));
    let learned = learned.prop_map(|(pace, trust, capacity, token_lengths)| Learned {
        pace,
        trust,
        capacity,
        token_lengths,
    });
    let owned = (chance(), small(), time());
    let owned = owned.prop_map(|(response, moves, age)| Owned { response, moves, age });
    let drawn = (
        (chance(), small(), small(), chance(), chance()),
        option::of(in_hand()),
        list(placed, 0..4),
        option::of(clock()),
        list(lesson(), 0..4),
        list(owned, 0..4),
        learned,
    );
    drawn.prop_map(|(state, in_hand, placed, clock, lessons, owned, learned)| {
        let (name, generation, changes, drains, inserted_tokens) = state;
        let base = About::of(BackendName(name), generation);
        let told = About { changes, drains, in_hand, inserted_tokens, placed, clock, ..base };
        About { lessons, owned, learned, ..told }
    })
}

fn update() -> impl Strategy<Value = Update> {
    let length = ("\\PC{0,20}", chance(), chance()).prop_map(|(model, bytes, tokens)| {
        PromptLength { model: Arc::from(model.as_str()), bytes, tokens }
    });
    let drawn = (chance(), chance(), list(about(), 0..5), list(length, 0..3));
    drawn.prop_map(|(proxy, number, about, lengths)| Update {
        proxy: ProxyId(proxy),
        number,
        about,
        lengths,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn there_and_back(update in update()) {
        let bytes = encoded(&update);
        prop_assert_eq!(Update::decode(&bytes), Ok(update.clone()));
        let word = Word::Update(update);
        let mut published = vec![];
        word.encode(&mut published);
        prop_assert_eq!(&published[1..], &bytes[..]);
        prop_assert_eq!(Word::decode(&published), Ok(word));
    }

    /// Whatever is read can be told again, and means the same.
    #[test]
    fn any_bytes_do_no_harm(mut bytes in list(any::<u8>(), 0..200), known in any::<bool>()) {
        if known && let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        if let Ok(update) = Update::decode(&bytes) {
            prop_assert_eq!(Update::decode(&encoded(&update)), Ok(update));
        }
    }

    #[test]
    fn cut_anywhere_it_is_shorter_or_wrong(update in update(), at in any::<prop::sample::Index>()) {
        let bytes = encoded(&update);
        let cut = at.index(bytes.len());
        match Update::decode(&bytes[..cut]) {
            // Between two fields nobody can see that there were more.
            Ok(less) => {
                prop_assert!(less.about.len() <= update.about.len());
                prop_assert!(encoded(&less).len() <= cut);
            }
            Err(UpdateError::Malformed { offset, .. }) => prop_assert!(offset <= cut),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn every_cut_within_a_field_is_an_error() {
    let bytes = encoded(&full());
    let mut reader = Reader::new(&bytes);
    assert_eq!(reader.byte("a version"), Ok(VERSION));
    let mut whole = Vec::new();
    while let Ok(Some((tag, field))) = reader.field() {
        // Who says it comes first: without that nothing is an update.
        let end = bytes.len() - reader.len();
        whole.push((end, tag));
        assert!(!field.is_empty());
    }
    for cut in 0..bytes.len() {
        let read = Update::decode(&bytes[..cut]);
        assert_eq!(read.is_ok(), whole.iter().any(|(end, _)| *end == cut), "{cut}: {read:?}");
    }
    assert_eq!(whole.iter().map(|(_, tag)| *tag).collect::<Vec<_>>(), [1, 2, 3, 3, 4]);
}

#[test]
fn every_byte_may_be_any_other() {
    let update = full();
    let mut bytes = encoded(&update);
    for at in 0..bytes.len() {
        let right = bytes[at];
        for byte in 0..=u8::MAX {
            bytes[at] = byte;
            match Update::decode(&bytes) {
                Ok(read) => assert_eq!(Update::decode(&encoded(&read)), Ok(read)),
                Err(UpdateError::UnknownVersion { version }) => {
                    assert_eq!((at, version), (0, byte));
                }
                Err(UpdateError::Malformed { offset, .. }) => assert!(offset <= bytes.len()),
                Err(error @ UpdateError::UnknownKind { .. }) => panic!("{error}"),
            }
        }
        bytes[at] = right;
    }
    assert_eq!(Update::decode(&bytes), Ok(update));
}

/// What a build to come may add: fields with tags of its own, between any others.
#[test]
fn what_is_not_known_is_passed_over() {
    let mut bytes = vec![VERSION];
    put_field(&mut bytes, 200, |out| out.extend([7; 300]));
    put_field(&mut bytes, PROXY, |out| put_hash(out, 9));
    put_field(&mut bytes, ABOUT, |out| {
        put_field(out, 255, |out| out.push(1));
        put_field(out, BACKEND, |out| put_hash(out, 4));
        put_field(out, 0, |_| ());
        put_number(out, GENERATION, 5);
    });
    put_field(&mut bytes, 99, |out| put_field(out, PROXY, |out| put_hash(out, 1)));
    let about = vec![About::of(BackendName(4), 5)];
    let expected = Update { proxy: ProxyId(9), number: 0, about, lengths: Vec::new() };
    assert_eq!(Update::decode(&bytes), Ok(expected));
}

fn with(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_field(&mut out, PROXY, |out| put_hash(out, 9));
    put_field(&mut out, tag, |out| out.extend_from_slice(bytes));
    out
}

fn with_about(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut about = vec![];
    put_field(&mut about, BACKEND, |out| put_hash(out, 4));
    put_field(&mut about, tag, |out| out.extend_from_slice(bytes));
    with(ABOUT, &about)
}

/// Of an update the first field behind its proxy begins at 13, of a backend behind its name at 25.
#[rstest]
#[case::nothing(&[], 0, "a version")]
#[case::nobody(&[VERSION], 1, "a proxy's number")]
#[case::no_length(&[VERSION, PROXY], 2, "the length of a field within its surroundings")]
#[case::too_long(&[VERSION, 77, 1], 2, "the length of a field within its surroundings")]
#[case::far_too_long(
    &[VERSION, 77, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0], 2,
    "the length of a field within its surroundings"
)]
#[case::short_proxy(&[VERSION, PROXY, 2, 1, 1], 3, "a proxy's number")]
#[case::more_than_a_number(&with(NUMBER, &[1, 2]), 14, "the end of a field")]
#[case::endless_number(&with(NUMBER, &[0x80; 11]), 13, "a number of an update")]
#[case::ten_bytes_too_much(
    &with(NUMBER, &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2]), 13,
    "a number of an update"
)]
#[case::unnamed_backend(&with(ABOUT, &[GENERATION, 1, 3]), 16, "a backend's name")]
#[case::generation(&with_about(GENERATION, &[0x80, 0x80, 0x80, 0x80, 0x10]), 25, "a generation")]
#[case::amount(
    &with_about(IN_HAND, &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0]), 26,
    "queued tokens"
)]
#[case::part_of_a_chunk(&with_about(PLACED, &[1, 2, 3]), 26, "the end of a field")]
#[case::part_of_a_counter(&with_about(CLOCK, &[1, 2, 3]), 27, "a proxy's number")]
#[case::part_of_a_response(&with_about(OWNED, &[1, 2, 3]), 25, "a response's hash")]
#[case::neither_yes_nor_no(&with_about(CACHED, &[1, 1, 1, 2]), 28, "0 or 1")]
#[case::no_text(&with(PROMPT_LENGTH, &[1, 1, 0xff]), 15, "a model's name")]
fn what_is_wrong_is_told_with_its_place(
    #[case] bytes: &[u8],
    #[case] offset: usize,
    #[case] expected: &'static str,
) {
    assert_eq!(Update::decode(bytes), Err(UpdateError::Malformed { offset, expected }));
}

#[test]
fn there_are_limits() {
    let limit = |expected: &str, bytes: &[u8]| match Update::decode(bytes) {
        Err(UpdateError::Malformed { expected: found, .. }) => assert_eq!(found, expected),
        other => panic!("{other:?}"),
    };
    let backend = About::of(BackendName(1), 0);
    let many = |about: About, count: usize| Update {
        about: vec![about; count],
        lengths: Vec::new(),
        ..full()
    };
    assert!(Update::decode(&encoded(&many(backend.clone(), ABOUT_MAX))).is_ok());
    limit("2048 backends at most", &encoded(&many(backend.clone(), ABOUT_MAX + 1)));
    let chunks = Placed { stamp: 1, chunks: vec![7; CHUNKS_MAX / 2] };
    let chunky = About { placed: vec![chunks], ..backend.clone() };
    assert!(Update::decode(&encoded(&many(chunky.clone(), 2))).is_ok());
    limit("4096 chunks at most", &encoded(&many(chunky, 3)));
    let counters = vec![(ProxyId(1), 1); COUNTERS_MAX / 16];
    let clock = Some(Clock { counters, inserted_tokens: 0, fresh_tokens: 0 });
    let clocked = About { clock, ..backend.clone() };
    assert!(Update::decode(&encoded(&many(clocked.clone(), 16))).is_ok());
    limit("1024 counters at most", &encoded(&many(clocked, 17)));
    let lessons = vec![Lesson::Pace { work: 1, time: Duration::ZERO }; LESSONS_MAX + 1];
    limit("4096 lessons at most", &encoded(&many(About { lessons, ..backend }, 1)));
    let owned = vec![Owned { response: 1, moves: 0, age: Duration::ZERO }; OWNED_MAX + 1];
    let owner = About { owned, ..About::of(BackendName(1), 0) };
    limit("512 responses at most", &encoded(&many(owner, 1)));
    let token_lengths = vec![(Arc::from("m"), Average::default()); TOKEN_LENGTHS_MAX + 1];
    let learned = Learned { token_lengths, ..Learned::default() };
    let adapters = About { learned, ..About::of(BackendName(1), 0) };
    limit("64 models at most", &encoded(&many(adapters, 1)));
    let length = full().lengths[0].clone();
    let lengths = vec![length.clone(); LESSONS_MAX + 1];
    limit("4096 lengths of prompts at most", &encoded(&Update { lengths, ..full() }));
    // A model of such a name is learned of by each proxy alone.
    let model = Arc::from("x".repeat(MODEL_BYTES_MAX + 1));
    let lengths = vec![PromptLength { model, ..length.clone() }, length.clone()];
    let update = Update { lengths, ..full() };
    assert_eq!(Update::decode(&encoded(&update)).map(|update| update.lengths), Ok(vec![length]));
}

/// What no proxy believes of itself is not told either.
#[test]
fn what_is_below_zero_is_told_as_nothing() {
    let in_hand = InHand { queued: -1, resident: i64::MIN, ..InHand::default() };
    let about = About { in_hand: Some(in_hand), ..About::of(BackendName(1), 0) };
    let update = Update { about: vec![about], ..full() };
    let read = Update::decode(&encoded(&update)).expect("it is well formed");
    assert_eq!(read.about[0].in_hand, Some(InHand::default()));
}

#[rstest]
#[case::nothing(&[], Err(UpdateError::Malformed { offset: 0, expected: "a kind of word" }))]
#[case::unknown(&[3, 1, 2], Err(UpdateError::UnknownKind { kind: 3 }))]
#[case::of_another_version(&[1, 2, 7], Err(UpdateError::UnknownVersion { version: 2 }))]
#[case::asked(
    &[2, 1, 8, 1, 0, 0, 0, 0, 0, 0, 0, 2, 8, 2, 0, 0, 0, 0, 0, 0, 0],
    Ok(Word::Ask { from: ProxyId(1), to: ProxyId(2) })
)]
#[case::asked_with_more(
    &[2, 9, 1, 7, 2, 8, 2, 0, 0, 0, 0, 0, 0, 0, 1, 8, 1, 0, 0, 0, 0, 0, 0, 0],
    Ok(Word::Ask { from: ProxyId(1), to: ProxyId(2) })
)]
#[case::asked_nobody(
    &[2, 1, 8, 1, 0, 0, 0, 0, 0, 0, 0],
    Err(UpdateError::Malformed { offset: 11, expected: "who asks and who is asked" })
)]
#[case::asked_too_long(
    &[2, 1, 9, 1, 0, 0, 0, 0, 0, 0, 0, 7],
    Err(UpdateError::Malformed { offset: 11, expected: "the end of a field" })
)]
#[case::cut(
    &[2, 1, 3, 1, 0, 0],
    Err(UpdateError::Malformed { offset: 3, expected: "a proxy's number" })
)]
fn words_are_told_apart(#[case] bytes: &[u8], #[case] expected: Result<Word, UpdateError>) {
    let read = Word::decode(bytes);
    assert_eq!(read, expected);
    if let Ok(word) = read {
        let mut out = vec![];
        word.encode(&mut out);
        assert_eq!(Word::decode(&out), Ok(word));
    }
}

#[rstest]
#[case::kind(UpdateError::UnknownKind { kind: 9 }, "word of unknown kind 9")]
#[case::version(UpdateError::UnknownVersion { version: 2 }, "update of unknown version 2")]
#[case::place(
    UpdateError::Malformed { offset: 7, expected: "a stamp" },
    "malformed word at byte 7: expected a stamp"
)]
fn errors_say_what_was_expected(#[case] error: UpdateError, #[case] text: &str) {
    assert_eq!(error.to_string(), text);
}
