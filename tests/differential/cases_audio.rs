//! Audio: multipart forms, right and hostile. Only a transcribing model has the routes; of the
//! others it is the 404 that both must say, whatever stands in the form.

use crate::cases::{Case, Request};

const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";
const TRANSLATIONS: &str = "/v1/audio/translations";
const BOUNDARY: &str = "frontier-7";

/// All of them, for a server of this model.
pub(crate) fn cases(model: &str) -> Vec<Case> {
    let wav = wave();
    let file: Part<'_> = (r#"name="file"; filename="a.wav""#, Some("audio/wav"), &wav);
    let named: Part<'_> = (r#"name="model""#, None, model.as_bytes());
    let unknown: Part<'_> = (r#"name="model""#, None, b"nope");
    let of =
        |name: &str, path: &str, parts: &[Part<'_>]| Case::raw(name, form(path, parts).bytes());
    let ask = |name, parts: &[Part<'_>]| of(name, TRANSCRIPTIONS, parts);
    let field = |text: &'static str, value: &'static str| -> Part<'static> {
        (text, None, value.as_bytes())
    };
    let whole = body(&[file, named]);
    let typed = |name, kind: &str, body: &[u8]| {
        let request = Request::new("POST", TRANSCRIPTIONS).header("Content-Type", kind);
        Case::raw(name, request.body(body).bytes())
    };
    let right = format!("multipart/form-data; boundary={BOUNDARY}");
    let stream = field(r#"name="stream""#, "true");
    let zero = field(r#"name="temperature""#, "0");
    let english = field(r#"name="language""#, "en");
    vec![
        ask("audio_model_first", &[named, english, zero, file]),
        ask("audio_model_last", &[file, zero, english, named]),
        ask("audio_model_absent", &[file, zero]),
        ask("audio_model_empty", &[(r#"name="model""#, None, b""), file]),
        ask("audio_model_twice", &[unknown, file, named]),
        ask("audio_model_unknown", &[unknown, file]).fleet("lists all models"),
        ask("audio_model_unknown_last", &[file, unknown]).fleet("lists all models"),
        ask("audio_model_unquoted", &[("name=model", None, model.as_bytes()), file]),
        ask(
            "audio_model_in_file",
            &[(r#"name="file"; filename="model""#, None, b"name=\"model\"\r\n\r\nnope"), named],
        ),
        ask("audio_stream", &[stream, zero, named, file]),
        ask(
            "audio_stream_usage",
            &[stream, field(r#"name="stream_include_usage""#, "true"), zero, named, file],
        ),
        ask(
            "audio_verbose",
            &[field(r#"name="response_format""#, "verbose_json"), zero, named, file],
        ),
        ask("audio_text", &[field(r#"name="response_format""#, "text"), zero, named, file]),
        ask("audio_srt", &[field(r#"name="response_format""#, "srt"), named, file]),
        ask("audio_bad_language", &[field(r#"name="language""#, "frobnicate"), named, file]),
        ask("audio_bad_temperature", &[field(r#"name="temperature""#, "warm"), named, file]),
        ask("audio_no_file", &[named]),
        ask("audio_empty_file", &[named, (r#"name="file"; filename="a.wav""#, None, b"")]),
        ask("audio_file_is_text", &[named, field(r#"name="file""#, "hello")]),
        ask(
            "audio_file_is_no_audio",
            &[named, (r#"name="file"; filename="a.wav""#, None, b"RIFF????WAVE")],
        ),
        ask("audio_two_files", &[file, file, named]),
        ask("audio_no_parts", &[]),
        of("translation", TRANSLATIONS, &[file, zero, named]),
        of("translation_stream", TRANSLATIONS, &[stream, zero, named, file]),
        of("translation_no_file", TRANSLATIONS, &[named]),
        of("translation_unknown", TRANSLATIONS, &[file, unknown]).fleet("lists all models"),
        typed("audio_wrong_boundary", "multipart/form-data; boundary=other", &whole),
        typed("audio_no_boundary", "multipart/form-data", &whole),
        typed(
            "audio_quoted_boundary",
            &format!("multipart/form-data; boundary=\"{BOUNDARY}\""),
            &whole,
        ),
        typed(
            "audio_upper_case_type",
            &format!("Multipart/Form-Data; charset=utf-8; BOUNDARY={BOUNDARY}"),
            &whole,
        ),
        typed("audio_empty_boundary", "multipart/form-data; boundary=", &whole),
        typed("audio_json", "application/json", format!(r#"{{"model":"{model}"}}"#).as_bytes()),
        typed(
            "audio_urlencoded",
            "application/x-www-form-urlencoded",
            format!("model={model}").as_bytes(),
        ),
        typed("audio_cut_short", &right, &whole[..whole.len() - 9]),
        typed("audio_cut_in_file", &right, &whole[..whole.len() / 2]),
        typed("audio_preamble", &right, &[b"before\r\n", whole.as_slice(), b"behind"].concat()),
        typed(
            "audio_bare_line_feeds",
            &right,
            String::from_utf8_lossy(&whole).replace("\r\n", "\n").as_bytes(),
        ),
        typed("audio_garbage", &right, b"\0\xff\xfe--frontier"),
        typed("audio_empty", &right, b""),
        Case::raw("audio_nothing", Request::new("POST", TRANSCRIPTIONS).bytes()),
        Case::raw(
            "audio_alias",
            form(
                TRANSCRIPTIONS,
                &[file, (r#"name="model""#, None, format!("{model}-alias").as_bytes())],
            )
            .bytes(),
        ),
    ]
}

/// What stands behind `form-data; `, the content type, the content.
type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn form(path: &str, parts: &[Part<'_>]) -> Request {
    Request::new("POST", path)
        .header("Content-Type", format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(&body(parts))
}

fn body(parts: &[Part<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (disposition, kind, content) in parts {
        bytes.extend_from_slice(
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n").as_bytes(),
        );
        if let Some(kind) = kind {
            bytes.extend_from_slice(format!("Content-Type: {kind}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(content);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    bytes
}

/// A tenth of a second of a rising tone, 16 kHz, mono, 16 bits.
fn wave() -> Vec<u8> {
    let samples: Vec<u8> =
        (0..1600_u32).map(|n| (n * n / 16 % 8192) as u16).flat_map(u16::to_le_bytes).collect();
    let length = samples.len() as u32;
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + length).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16_u32.to_le_bytes());
    bytes.extend([1, 0, 1, 0]);
    bytes.extend(16_000_u32.to_le_bytes());
    bytes.extend(32_000_u32.to_le_bytes());
    bytes.extend([2, 0, 16, 0]);
    bytes.extend(b"data");
    bytes.extend(length.to_le_bytes());
    bytes.extend(samples);
    bytes
}
