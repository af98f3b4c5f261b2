//! Forms: `multipart/form-data` (RFC 7578) read from a whole body, and what starlette says about
//! broken ones.

use super::answers::Answer;
use serde_json::{Map, Value};

/// A file of a form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) bytes: usize,
}

/// The fields of a form that are texts, and its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) fields: Map<String, Value>,
    pub(super) file: Option<File>,
}

/// The form in a body of this type; another type is a form without fields.
pub(super) fn read(content_type: &str, body: &[u8]) -> Result<Form, Answer> {
    let mut parameters = content_type.split(';').map(str::trim);
    let media_type = parameters.next().unwrap_or_default().to_ascii_lowercase();
    match media_type.as_str() {
        "multipart/form-data" => {
            let boundary = parameter(content_type, "boundary")
                .ok_or_else(|| Answer::detail(400, "Missing boundary in multipart."))?;
            multipart(boundary.as_bytes(), body)
                .ok_or_else(|| Answer::detail(400, "Invalid multipart data."))
        }
        "application/x-www-form-urlencoded" => {
            let url = format!("mock:?{}", String::from_utf8_lossy(body));
            let pairs = http_types::Url::parse(&url).map_err(|_| Answer::not_found())?;
            let fields = pairs.query_pairs();
            let fields = fields.map(|(name, value)| (name.into_owned(), Value::from(&*value)));
            Ok(Form { fields: fields.collect(), file: None })
        }
        _ => Ok(Form::default()),
    }
}

/// A parameter of a header's value, with or without quotes.
fn parameter<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value.split(';').skip(1).find_map(|part| {
        let (own, value) = part.trim().split_once('=')?;
        own.eq_ignore_ascii_case(name).then(|| value.trim_matches('"'))
    })
}

fn multipart(boundary: &[u8], body: &[u8]) -> Option<Form> {
    let delimiter = [b"\r\n--", boundary].concat();
    let mut form = Form::default();
    // The first delimiter has nothing before it.
    let mut rest = body.strip_prefix(&delimiter[2..])?;
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = find(part, &delimiter)?;
        let (part, after) = part.split_at(end);
        rest = &after[delimiter.len()..];
        let head_end = find(part, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&part[..head_end]).ok()?;
        let content = &part[head_end + 4..];
        let disposition = head.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-disposition").then_some(value)
        })?;
        let name = parameter(disposition, "name")?.to_owned();
        match parameter(disposition, "filename") {
            Some(file) if name == "file" => {
                form.file = Some(File { name: file.to_owned(), bytes: content.len() });
            }
            Some(_) => {}
            None => {
                let text = String::from_utf8_lossy(content).into_owned();
                form.fields.insert(name, Value::from(text));
            }
        }
    }
    rest.starts_with(b"--").then_some(form)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const FILE: &str = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
                        content-type: audio/wav\r\n\r\n--\r\n\r\n--b--\r\n";

    #[rstest]
    #[case::field("--b\r\nContent-Disposition: form-data; name=model\r\n\r\ntiny\r\n--b--", Some((1, None)))]
    #[case::file(FILE, Some((0, Some(4))))]
    #[case::empty("--b--\r\n", Some((0, None)))]
    #[case::cut(&FILE[..FILE.len() - 8], None)]
    #[case::no_delimiter("model=tiny", None)]
    #[case::no_name("--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--", None)]
    fn parts_are_found(#[case] body: &str, #[case] expected: Option<(usize, Option<usize>)>) {
        let form = multipart(b"b", body.as_bytes());
        let told = form.map(|form| (form.fields.len(), form.file.map(|file| file.bytes)));
        assert_eq!(told, expected);
    }

    #[rstest]
    #[case::quoted("multipart/form-data; boundary=\"x y\"", Some("x y"))]
    #[case::plain("multipart/form-data;Boundary=abc; charset=utf-8", Some("abc"))]
    #[case::none("multipart/form-data", None)]
    fn boundaries(#[case] value: &str, #[case] expected: Option<&str>) {
        assert_eq!(parameter(value, "boundary"), expected);
    }
}
