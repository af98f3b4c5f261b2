//! Pages line by line, real ones, and such as nobody would write, judged by a strict reader.

pub(crate) mod strict;

use super::line::Line;
use super::*;
use proptest::prelude::*;
use rstest::rstest;
use std::string::ToString;
use std::vec;

/// A part of what vLLM 0.32 answered after four requests.
const VLLM: &str = include_str!("tests/vllm-0.32.txt");
/// What our mock answers.
const MOCK: &str = include_str!("tests/mock.txt");

fn pages<'a>(texts: &'a [(&'a str, &'a str)]) -> Vec<Page<'a>> {
    texts.iter().map(|&(backend, text)| Page { backend, text: text.as_bytes() }).collect()
}

/// The merged page, which the strict reader accepts, and the count of lines left out.
#[track_caller]
fn merged(texts: &[(&str, &str)], own: &str) -> (String, u64) {
    let (text, left_out) = merge(&pages(texts), own.as_bytes());
    if let Err(why) = strict::parse(&text) {
        panic!("{why}, in\n{}", String::from_utf8_lossy(&text));
    }
    (String::from_utf8(text).expect("the strict reader looked"), left_out)
}

#[rstest]
#[case::nothing("", "", 0)]
#[case::no_labels("a 1\n", "# TYPE a untyped\na{backend=\"x\"} 1\n", 0)]
#[case::no_line_feed("a 1", "# TYPE a untyped\na{backend=\"x\"} 1\n", 0)]
#[case::labels(
    "a{b=\"c\",d=\"e\"} 1\n",
    "# TYPE a untyped\na{backend=\"x\",b=\"c\",d=\"e\"} 1\n",
    0
)]
#[case::blanks_everywhere(
    "  a\t{ b = \"c\" ,\td=\"e\" , }  1   2 \n",
    "# TYPE a untyped\na{backend=\"x\",b=\"c\",d=\"e\"} 1 2\n",
    0
)]
#[case::no_blank_behind_the_brace("a{}1\n", "# TYPE a untyped\na{backend=\"x\"} 1\n", 0)]
#[case::crlf(
    "# HELP a b\r\n# TYPE a gauge\r\na 1\r\n\r\n",
    "# HELP a b\n# TYPE a gauge\na{backend=\"x\"} 1\n",
    0
)]
#[case::empty_help("# HELP a\n# TYPE a gauge\n", "# HELP a \n# TYPE a gauge\n", 0)]
#[case::help_only("# HELP a b\n", "", 0)]
#[case::comments(
    "# one\n#\n#two\n# UNIT a b\n# EOF\na 1\n",
    "# TYPE a untyped\na{backend=\"x\"} 1\n",
    0
)]
#[case::exemplar(
    "a 1 # {trace_id=\"b\"} 0.5\nb{} 2 3 # {} 1\n",
    "# TYPE a untyped\na{backend=\"x\"} 1\n# TYPE b untyped\nb{backend=\"x\"} 2 3\n",
    0
)]
#[case::hash_in_a_label(
    "a{b=\"c # {\"} 1\n",
    "# TYPE a untyped\na{backend=\"x\",b=\"c # {\"} 1\n",
    0
)]
#[case::values(
    "a 1e+09\nb NaN\nc +Inf\nd -Inf\ne -0.5\nf 1.7E-3\n",
    "# TYPE a untyped\na{backend=\"x\"} 1e+09\n# TYPE b untyped\nb{backend=\"x\"} NaN\n\
     # TYPE c untyped\nc{backend=\"x\"} +Inf\n# TYPE d untyped\nd{backend=\"x\"} -Inf\n\
     # TYPE e untyped\ne{backend=\"x\"} -0.5\n# TYPE f untyped\nf{backend=\"x\"} 1.7E-3\n",
    0
)]
#[case::time("a 1 -1395066363000\n", "# TYPE a untyped\na{backend=\"x\"} 1 -1395066363000\n", 0)]
#[case::escapes(
    "# HELP a b\\\\c\\nd\"\na{b=\"\\\\c\\\"d\\n,} é\"} 1\n",
    "# HELP a b\\\\c\\nd\"\n# TYPE a untyped\na{backend=\"x\",b=\"\\\\c\\\"d\\n,} é\"} 1\n",
    0
)]
#[case::quoted_names(
    "# HELP \"a.b\" c\n# TYPE \"a.b\" gauge\n{\"a.b\"} 1\n{ \"a.b\" , \"l.m\"=\"y\" } 2\n",
    "# HELP \"a.b\" c\n# TYPE \"a.b\" gauge\n{\"a.b\",backend=\"x\"} 1\n\
     {\"a.b\",backend=\"x\",\"l.m\"=\"y\"} 2\n",
    0
)]
#[case::quoted_without_need(
    "# TYPE a gauge\n{\"a\",\"b\"=\"c\"} 1\n",
    "# TYPE a gauge\na{backend=\"x\",b=\"c\"} 1\n",
    0
)]
#[case::quoted_escapes(
    "{\"a\\\"\\\\\\nb\"} 1\n",
    "# TYPE \"a\\\"\\\\\\nb\" untyped\n{\"a\\\"\\\\\\nb\",backend=\"x\"} 1\n",
    0
)]
#[case::own_backend_label(
    "a{backend=\"cuda\"} 1\n",
    "# TYPE a untyped\na{backend=\"x\",exported_backend=\"cuda\"} 1\n",
    0
)]
#[case::own_exported_label_too(
    "a{exported_backend=\"y\",backend=\"cuda\"} 1\n",
    "# TYPE a untyped\n\
     a{backend=\"x\",exported_backend=\"y\",exported_exported_backend=\"cuda\"} 1\n",
    0
)]
#[case::renamed_into_a_twin(
    "a{backend=\"y\"} 1\na{exported_backend=\"y\"} 2\n",
    "# TYPE a untyped\na{backend=\"x\",exported_backend=\"y\"} 1\n",
    1
)]
#[case::histogram(
    "# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 2\na_count 1\na_created 5\n",
    "# TYPE a histogram\na_bucket{backend=\"x\",le=\"+Inf\"} 1\na_sum{backend=\"x\"} 2\n\
     a_count{backend=\"x\"} 1\na_created{backend=\"x\"} 5\n",
    0
)]
#[case::summary(
    "# TYPE a summary\na{quantile=\"0.5\"} 1\na_sum 2\na_count 1\n",
    "# TYPE a summary\na{backend=\"x\",quantile=\"0.5\"} 1\na_sum{backend=\"x\"} 2\n\
     a_count{backend=\"x\"} 1\n",
    0
)]
#[case::counter_of_openmetrics(
    "# TYPE a counter\na_total 1\na_created 5\n# EOF\n",
    "# TYPE a counter\na_total{backend=\"x\"} 1\na_created{backend=\"x\"} 5\n",
    0
)]
#[case::created_as_a_family(
    "# TYPE a histogram\na_count 1\n# TYPE a_created gauge\na_created 5\n",
    "# TYPE a histogram\na_count{backend=\"x\"} 1\n\
     # TYPE a_created gauge\na_created{backend=\"x\"} 5\n",
    0
)]
#[case::lines_apart(
    "# TYPE a gauge\na 1\nb 2\na{c=\"d\"} 3\n",
    "# TYPE a gauge\na{backend=\"x\"} 1\na{backend=\"x\",c=\"d\"} 3\n\
     # TYPE b untyped\nb{backend=\"x\"} 2\n",
    0
)]
#[case::one_series_twice(
    "a{b=\"c\",d=\"e\"} 1\na{d=\"e\",b=\"c\",f=\"\"} 2\n",
    "# TYPE a untyped\na{backend=\"x\",b=\"c\",d=\"e\"} 1\n",
    1
)]
#[case::type_twice(
    "# TYPE a gauge\n# TYPE a counter\na 1\n",
    "# TYPE a gauge\na{backend=\"x\"} 1\n",
    1
)]
#[case::help_twice(
    "# HELP a b\n# HELP a c\na 1\n",
    "# HELP a b\n# TYPE a untyped\na{backend=\"x\"} 1\n",
    1
)]
#[case::help_behind_its_sample(
    "a 1\n# HELP a b\n",
    "# HELP a b\n# TYPE a untyped\na{backend=\"x\"} 1\n",
    0
)]
#[case::type_behind_its_sample(
    "a 1\n# TYPE a gauge\n",
    "# TYPE a untyped\na{backend=\"x\"} 1\n",
    1
)]
#[case::part_of_another(
    "# TYPE a histogram\na_count 1\n# TYPE a_count gauge\na_count 2\n",
    "# TYPE a histogram\na_count{backend=\"x\"} 1\n",
    1
)]
#[case::whole_of_others(
    "a_count 2\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 3\n",
    "# TYPE a_count untyped\na_count{backend=\"x\"} 2\n",
    2
)]
#[case::names_of_ours(
    "# HELP vllm_proxy_a b\n# TYPE vllm_proxy_a gauge\nvllm_proxy_a 1\n{\"vllm_proxy_a\"} 1\nvllm:a 1\n",
    "# TYPE vllm:a untyped\nvllm:a{backend=\"x\"} 1\n",
    4
)]
fn one_page(#[case] page: &str, #[case] expected: &str, #[case] expected_out: u64) {
    let (text, left_out) = merged(&[("x", page)], "");
    assert_eq!(text, expected);
    assert_eq!(left_out, expected_out);
}

#[rstest]
fn malformed(
    #[values(
        "a",
        "a ",
        "a x",
        "a 1 2 3",
        "a 1 2.5",
        "a 1 x",
        "a1",
        "1a 1",
        "é 1",
        "a-b 1",
        "a 0x1p3",
        "a 1_0",
        "a +NaN",
        "a 1,0",
        "a 1 # x",
        "a{ 1",
        "a} 1",
        "a{b} 1",
        "a{b=} 1",
        "a{b=c} 1",
        "a{b=\"c} 1",
        "a{b=\"c\\\"} 1",
        "a{b=\"\\t\"} 1",
        "a{b:c=\"d\"} 1",
        "a{,} 1",
        "a{b=\"c\",,} 1",
        "a{b=\"c\" d=\"e\"} 1",
        "a{b=\"c\",b=\"d\"} 1",
        "a{backend=\"c\",backend=\"d\"} 1",
        "a{__name__=\"b\"} 1",
        "a{\"b\"} 1",
        "{} 1",
        "{b=\"c\"} 1",
        "{\"a\",\"b\"} 1",
        "{b=\"c\",\"a\"} 1",
        "{\"\"} 1",
        "{\"a\" 1",
        "\"a\" 1",
        "=\"\"",
        "<html>",
        "a\r 1",
        "# HELP",
        "# HELP 1",
        "# HELP a-b c",
        "# HELP a b\\d",
        "# HELP a b\\",
        "# TYPE a",
        "# TYPE a info",
        "# TYPE a Gauge",
        "# TYPE a gauge x",
        "# TYPE \"a gauge"
    )]
    line: &str,
) {
    let page = std::format!("{line}\nz 1\n");
    let expected = "# TYPE z untyped\nz{backend=\"x\"} 1\n";
    assert_eq!(merged(&[("x", &page)], ""), (expected.to_string(), 1));
}

#[rstest]
#[case::histogram_itself("# TYPE a histogram\na 1\n")]
#[case::bucket_without_a_limit("# TYPE a histogram\na_bucket 1\n")]
#[case::bucket_with_an_odd_limit("# TYPE a histogram\na_bucket{le=\"x\"} 1\n")]
#[case::summary_without_a_quantile("# TYPE a summary\na 1\n")]
fn samples_that_their_family_cannot_have(#[case] page: &str) {
    let (text, left_out) = merged(&[("x", page)], "");
    assert_eq!((text.lines().count(), left_out), (1, 1), "{text}");
}

#[test]
fn not_utf8() {
    let page = Page { backend: "x", text: b"a{b=\"\xff\"} 1\n\xff\n" };
    assert_eq!(merge(&[page], b""), (Vec::new(), 2));
}

#[rstest]
#[case::families_stay_together(
    &[("x", "# HELP a of x\n# TYPE a gauge\na 1\nb 2\n"), ("y", "b 3\n# HELP a of y\n# TYPE a gauge\na 4\n")],
    "# HELP a of x\n# TYPE a gauge\na{backend=\"x\"} 1\na{backend=\"y\"} 4\n\
     # TYPE b untyped\nb{backend=\"x\"} 2\nb{backend=\"y\"} 3\n",
    0
)]
#[case::in_order_of_appearance(
    &[("x", "b 1\n"), ("y", "a 1\nb 2\n")],
    "# TYPE b untyped\nb{backend=\"x\"} 1\nb{backend=\"y\"} 2\n# TYPE a untyped\na{backend=\"y\"} 1\n",
    0
)]
#[case::the_first_help_there_is(
    &[("x", "a 1\n"), ("y", "# HELP a b\na 2\n")],
    "# HELP a b\n# TYPE a untyped\na{backend=\"x\"} 1\na{backend=\"y\"} 2\n",
    0
)]
#[case::another_type(
    &[("x", "# TYPE a gauge\na 1\n"), ("y", "# HELP a b\n# TYPE a counter\na 2\na{b=\"c\"} 2\n"), ("z", "# TYPE a gauge\na 3\n")],
    "# TYPE a gauge\na{backend=\"x\"} 1\na{backend=\"z\"} 3\n",
    2
)]
#[case::no_type_where_there_was_one(
    &[("x", "# TYPE a histogram\na_count 1\n"), ("y", "a_count 2\na_sum 2\n")],
    "# TYPE a histogram\na_count{backend=\"x\"} 1\n",
    2
)]
#[case::type_without_samples(
    &[("x", "# TYPE a histogram\n"), ("y", "# TYPE a_count gauge\na_count 2\n"), ("z", "# TYPE a histogram\na_count 1\n")],
    "# TYPE a histogram\na_count{backend=\"z\"} 1\n",
    1
)]
#[case::summary_without_samples(
    &[("x", "# TYPE a summary\n"), ("y", "a_count 2\n"), ("z", "# TYPE a summary\na_count 1\n")],
    "# TYPE a summary\na_count{backend=\"z\"} 1\n",
    1
)]
#[case::total_with_and_without_a_family(
    &[("x", "# TYPE a counter\na_total 1\n"), ("y", "# TYPE a_total counter\na_total 2\n")],
    "# TYPE a counter\na_total{backend=\"x\"} 1\n",
    1
)]
#[case::total_without_and_with_a_family(
    &[("x", "# TYPE a_total counter\na_total 1\n"), ("y", "# TYPE a counter\na_total 2\na 3\n")],
    "# TYPE a_total counter\na_total{backend=\"x\"} 1\n# TYPE a counter\na{backend=\"y\"} 3\n",
    1
)]
#[case::help_of_a_part_is_not_the_wholes(
    &[("x", "# TYPE a histogram\na_count 1\n"), ("y", "# HELP a_count b\n# TYPE a_count gauge\n")],
    "# TYPE a histogram\na_count{backend=\"x\"} 1\n",
    0
)]
#[case::one_backend_twice(
    &[("x", "a 1\n"), ("x", "a 1\n\n# TYPE b gauge\n")],
    "# TYPE a untyped\na{backend=\"x\"} 1\n",
    2
)]
#[case::odd_addresses(
    &[("[::1]:8000", "a 1\n"), ("a\"b\\c\nd", "a 1\n")],
    "# TYPE a untyped\na{backend=\"[::1]:8000\"} 1\na{backend=\"a\\\"b\\\\c\\nd\"} 1\n",
    0
)]
fn several_pages(
    #[case] pages: &[(&str, &str)],
    #[case] expected: &str,
    #[case] expected_out: u64,
) {
    let (text, left_out) = merged(pages, "");
    assert_eq!(text, expected);
    assert_eq!(left_out, expected_out);
}

#[test]
fn our_own_families_stand_behind() {
    let mut own = Families::default();
    own.family("vllm_proxy_requests_total", Kind::Counter, "Requests\\, by\nmodel.");
    let labels = [("model", "a\"b\\c\nd"), ("code", "200")];
    own.sample("vllm_proxy_requests_total", &labels, Value::Integer(u64::MAX));
    own.family("vllm_proxy_seconds", Kind::Histogram, "Time.");
    own.sample("vllm_proxy_seconds_bucket", &[("le", "+Inf")], Value::Integer(2));
    own.sample("vllm_proxy_seconds_sum", &[], Value::Decimal(0.125));
    own.sample("vllm_proxy_seconds_count", &[], Value::Integer(2));
    own.family("vllm_proxy_odd", Kind::Gauge, "");
    for (at, value) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 3.0].into_iter().enumerate() {
        own.sample("vllm_proxy_odd", &[("at", &at.to_string())], Value::Decimal(value));
    }
    let own = String::from_utf8(own.finish()).expect("it is text");
    assert_eq!(
        own,
        "# HELP vllm_proxy_requests_total Requests\\\\, by\\nmodel.\n\
         # TYPE vllm_proxy_requests_total counter\n\
         vllm_proxy_requests_total{model=\"a\\\"b\\\\c\\nd\",code=\"200\"} 18446744073709551615\n\
         # HELP vllm_proxy_seconds Time.\n# TYPE vllm_proxy_seconds histogram\n\
         vllm_proxy_seconds_bucket{le=\"+Inf\"} 2\nvllm_proxy_seconds_sum 0.125\n\
         vllm_proxy_seconds_count 2\n# HELP vllm_proxy_odd \n# TYPE vllm_proxy_odd gauge\n\
         vllm_proxy_odd{at=\"0\"} NaN\nvllm_proxy_odd{at=\"1\"} +Inf\n\
         vllm_proxy_odd{at=\"2\"} -Inf\nvllm_proxy_odd{at=\"3\"} 3\n"
    );
    let shadow = "# TYPE vllm_proxy_requests_total gauge\nvllm_proxy_requests_total 7\na 1\n";
    let (text, left_out) = merged(&[("x", shadow)], &own);
    assert_eq!(
        (text, left_out),
        (std::format!("# TYPE a untyped\na{{backend=\"x\"}} 1\n{own}"), 2)
    );
    assert_eq!(merged(&[], own.trim_end()).0, own);
}

#[rstest]
#[case::vllm(VLLM)]
#[case::mock(MOCK)]
fn real_pages(#[case] page: &str) {
    let before = strict::parse(page.as_bytes()).expect("vLLM's page is good");
    strict::check_histograms(&before).expect("and adds up");
    let backends = ["10.0.0.1:8000", "10.0.0.2:8000", "[fd00::3]:8000"];
    let (text, left_out) = merged(&backends.map(|backend| (backend, page)), "");
    assert_eq!(left_out, 0);
    let after = strict::parse(text.as_bytes()).expect("judged already");
    strict::check_histograms(&after).expect("each still adds up");
    assert_eq!(after.len(), before.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&before.name, &before.help), (&after.name, &after.help));
        assert_eq!(before.kind, after.kind);
        let is_counter = before.kind.as_deref() == Some("counter");
        assert!(!is_counter || before.name.ends_with("_total"), "{}", before.name);
        let mut merged = after.samples.iter();
        for backend in backends {
            for sample in &before.samples {
                let merged = merged.next().expect("a sample of each backend");
                let mut labels = sample.labels.clone();
                labels.insert("backend".to_string(), backend.to_string());
                assert_eq!((&sample.name, &labels), (&merged.name, &merged.labels));
                assert_eq!(sample.value, merged.value);
            }
        }
        assert!(merged.next().is_none());
    }
}

/// A page of that many lines, by what stands in each.
fn page_of(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(|at| line(at) + "\n").collect()
}

/// Lines beyond a limit are left out, and counted.
#[rstest]
#[case::families(page_of(6_000, |at| format!("a{at} 1")), 5_000, 1_000)]
#[case::types(page_of(6_000, |at| format!("# TYPE a{at} histogram")), 5_000, 1_000)]
#[case::helps(page_of(6_000, |at| format!("# HELP a{at} b")) + "a0 1\na5999 1\n", 1, 1_001)]
#[case::series_of_known_families(page_of(6_000, |at| format!("a{}{{b=\"{at}\"}} 1", at % 2)), 2, 0)]
#[case::lines(page_of(50_007, |at| format!("a{{b=\"{at}\"}} 1")), 1, 7)]
#[case::empty_lines(page_of(50_000, |_| String::new()) + "a 1\n\n\nb 1", 0, 2)]
#[case::bytes("# HELP a b\na 1\n".to_string() + &"#".repeat((4 << 20) - 15) + "\nb 1\n", 1, 2)]
#[case::bytes_that_fit("a 1\n".to_string() + &"#".repeat((4 << 20) - 5) + "\nb 1\n", 1, 1)]
#[case::one_line("a".repeat(5 << 20), 0, 1)]
#[case::long_names(
    format!("{0} 1\n{0}b 1\n{{\"{0}b\"}} 1\n# TYPE {0}b gauge\n# HELP {0}b b\n", "a".repeat(256)),
    1,
    4
)]
#[case::labels(format!("a{{{}}} 1\n", page_of(128, |at| format!("l{at}=\"\",")).replace('\n', "")), 1, 0)]
#[case::many_labels(format!("a{{{}}} 1\n", page_of(129, |at| format!("l{at}=\"\",")).replace('\n', "")), 0, 1)]
fn a_page_has_limits(
    #[case] page: String,
    #[case] expected_families: usize,
    #[case] expected_out: u64,
) {
    let (text, left_out) = merged(&[("x", &page), ("y", "z 1\n")], "");
    assert_eq!(left_out, expected_out);
    assert_eq!(text.matches("# TYPE ").count(), expected_families + 1);
    assert!(text.ends_with("z{backend=\"y\"} 1\n"), "the other page is whole");
    // Nor is there room for more than is written.
    let (bytes, _) = merge(&pages(&[("x", &page)]), b"");
    assert!(bytes.capacity() <= 2 * page.len() + 256 * expected_families, "{}", bytes.capacity());
}

/// However their keys fall.
#[test]
fn only_equal_series_repeat() {
    let texts = ["a", "b", "a", "c", "b", "a"];
    let mut keys: Vec<_> = (0..texts.len()).map(|at| (7, at)).collect();
    keys.push((8, 6));
    let repeated = series::repeated(&mut keys, |at| texts.get(at).map(ToString::to_string));
    assert_eq!(repeated, [2, 5, 4]);
}

#[rstest]
#[case::no_labels("a 1.0", "", Some("a"))]
#[case::labels("a:b_1{c=\"d e\",f=\"\"} +Inf", "x", Some("a:b_1"))]
#[case::as_before("a{c=\"d\"} 1", "a", Some("a"))]
#[case::longer_than_before("ab 1", "a", Some("ab"))]
#[case::eight_labels(r#"a{b="",c="",d="",e="",f="",g="",h="",i=""} 1"#, "", Some("a"))]
#[case::nine_labels(r#"a{b="",c="",d="",e="",f="",g="",h="",i="",j=""} 1"#, "", None)]
#[case::own_backend(r#"a{backend="b"} 1"#, "", None)]
#[case::escape(r#"a{b="\n"} 1"#, "", None)]
#[case::twice(r#"a{b="c",b="d"} 1"#, "", None)]
#[case::time("a 1 5", "", None)]
#[case::two_blanks("a  1", "", None)]
#[case::comma_behind(r#"a{b="c",} 1"#, "", None)]
#[case::braces("a{} 1", "", None)]
#[case::crlf("a 1\r", "", None)]
#[case::value_of_two_points("a 1.0.0", "", None)]
fn plain_lines(#[case] line: &str, #[case] before: &str, #[case] expected: Option<&str>) {
    assert_eq!(plain::parse(line, before, &mut Vec::new()), expected);
}

/// What the strict reader must refuse, or it would judge nothing.
#[rstest]
fn the_judge_is_strict(
    #[values(
        "a 1",
        "a 1\n\n",
        "# x\na 1\n",
        "a  1\n",
        "a 1 \n",
        "a\t1\n",
        "a 1\r\n",
        "a 1 2 3\n",
        "a x\n",
        "a 1_0\n",
        "a{b=\"c\",} 1\n",
        "a{} 1\n",
        "a{b=\"c\",b=\"d\"} 1\n",
        "a{b=\"\\x\"} 1\n",
        "a{b=\"c} 1\n",
        "1 1\n",
        "a{1=\"b\"} 1\n",
        "a{b:=\"c\"} 1\n",
        "{\"a\",\"b\"} 1\n",
        "{b=\"c\"} 1\n",
        "a 1\na 2\n",
        "a{b=\"\"} 1\na 2\n",
        "a{b=\"c\",d=\"e\"} 1\na{d=\"e\",b=\"c\"} 1\n",
        "a 1\nb 1\na{c=\"d\"} 1\n",
        "a 1\n# TYPE a gauge\n",
        "# TYPE a gauge\n# TYPE a gauge\n",
        "# HELP a b\n# HELP a c\n",
        "# HELP a \\x\n",
        "# TYPE a info\n",
        "# TYPE a gauge\nb 1\n# HELP a b\n",
        "# TYPE a histogram\na 1\n",
        "# TYPE a histogram\na_bucket 1\n",
        "# TYPE a summary\na 1\n",
        "# TYPE a histogram\na_count 1\nb 1\na_sum 1\n",
        "# EOF\n",
        "# HELP a-b c\n"
    )]
    page: &str,
) {
    assert!(strict::parse(page.as_bytes()).is_err());
}

#[rstest]
#[case::good(&[("1", 1), ("+Inf", 2)], Some(2), true)]
#[case::shrinking(&[("1", 2), ("+Inf", 1)], Some(1), false)]
#[case::unordered(&[("2", 1), ("1", 1), ("+Inf", 1)], Some(1), false)]
#[case::without_infinity(&[("1", 1)], Some(1), false)]
#[case::another_count(&[("+Inf", 2)], Some(3), false)]
#[case::no_count(&[("+Inf", 2)], None, false)]
fn the_judge_counts(
    #[case] buckets: &[(&str, u8)],
    #[case] count: Option<u8>,
    #[case] is_good: bool,
) {
    let mut page = "# TYPE a histogram\na_sum 1\n".to_string();
    for (limit, value) in buckets {
        let _ = writeln!(page, "a_bucket{{le=\"{limit}\"}} {value}");
    }
    if let Some(count) = count {
        let _ = writeln!(page, "a_count {count}");
    }
    let families = strict::parse(page.as_bytes()).expect("the lines are good");
    assert_eq!(strict::check_histograms(&families).is_ok(), is_good);
}

/// Lines of few words, so that pages collide.
fn lines() -> impl Strategy<Value = String> {
    let name = "(a|b|c|\"a\"|\"d.e\"|vllm_proxy_a)(_bucket|_sum|_count|_total|_created)?";
    let label = "(b|backend|exported_backend|le|quantile|\"l.m\"|__name__)";
    let value = r#"="(1|\+Inf|x\\n|\\"|\\|)""#;
    let labels = (label, value).prop_map(|(label, value)| std::format!("{label}{value}"));
    let labels = prop::collection::vec(labels, 0..4);
    let kind = "(counter|gauge|histogram|summary|untyped|info)";
    let help = "[a\\\\n\" ]{0,4}";
    prop_oneof![
        2 => (name, kind).prop_map(|(name, kind)| std::format!("# TYPE {name} {kind}")),
        1 => (name, help).prop_map(|(name, help)| std::format!("# HELP {name} {help}")),
        6 => (name, labels, "(1|NaN|\\+Inf|x)( 5)?").prop_map(|(name, labels, value)| {
            let labels = labels.join(",");
            if name.starts_with('"') {
                std::format!("{{{name},{labels}}} {value}")
            } else {
                std::format!("{name}{{{labels}}} {value}")
            }
        }),
        1 => "[a{}=\", #\\\\\r1]{0,12}",
        1 => any::<String>(),
    ]
}

/// A page that is in order: a few families with each a few series.
fn good_page() -> impl Strategy<Value = String> {
    let labels = prop::collection::btree_set("[a-z\"\\\\\n]{1,3}", 1..4);
    let families = prop::collection::btree_map(0..KINDS.len(), (labels, 0..9_u64), 0..KINDS.len());
    families.prop_map(|families| {
        let mut page = String::new();
        for (at, (labels, value)) in families {
            let (name, kind) = (std::format!("f{at}"), KINDS[at]);
            let _ = write!(page, "# HELP {name} of {kind}\n# TYPE {name} {kind}\n");
            for label in labels {
                let mut quoted = String::new();
                escape(&mut quoted, &label);
                let (label, more) = (std::format!("l=\"{quoted}\""), value + 1);
                if kind == "histogram" {
                    let _ = writeln!(page, "{name}_bucket{{{label},le=\"1\"}} {value}");
                    let _ = writeln!(page, "{name}_bucket{{{label},le=\"+Inf\"}} {more}");
                    let _ = writeln!(page, "{name}_sum{{{label}}} 0.5");
                    let _ = writeln!(page, "{name}_count{{{label}}} {more}");
                } else if kind == "summary" {
                    let _ = writeln!(page, "{name}{{{label},quantile=\"0.5\"}} {value}");
                } else {
                    let _ = writeln!(page, "{name}{{backend=\"{quoted}\"}} {value} 7");
                }
            }
        }
        page
    })
}

const KINDS: [&str; 6] = ["counter", "gauge", "histogram", "summary", "untyped", "histogram"];

proptest! {
    #[test]
    fn whatever_comes_is_a_page(
        texts in prop::collection::vec(prop::collection::vec(lines(), 0..12), 0..4)
    ) {
        let texts: Vec<String> = texts.iter().map(|lines| lines.join("\n")).collect();
        let texts: Vec<_> = ["x", "y", "z"].into_iter().zip(texts.iter().map(|s| &**s)).collect();
        let own = "# TYPE vllm_proxy_a gauge\nvllm_proxy_a 1\n";
        let (text, left_out) = merge(&pages(&texts), own.as_bytes());
        let families = strict::parse(&text);
        prop_assert!(families.is_ok(), "{:?}\n{}", families, String::from_utf8_lossy(&text));
        let samples: usize = families.iter().flatten().map(|family| family.samples.len()).sum();
        let all: usize = texts.iter().map(|(_, text)| text.split('\n').count()).sum();
        prop_assert!(samples - 1 + left_out as usize <= all);
        // A page that was merged is good in turn, and loses nothing but what is ours.
        let text = core::str::from_utf8(&text).expect("the strict reader looked");
        let (again, left_out) = merge(&pages(&[("w", text)]), b"");
        prop_assert_eq!(left_out, 2);
        prop_assert!(strict::parse(&again).is_ok());
    }

    /// What is copied is what would have been written.
    #[test]
    fn plain_lines_are_read_alike(
        line in prop_oneof![lines(), r#"[a:_1]{1,3}(\{([a_]{1,2}="[b=, é]{0,2}",?){0,3}\})? [1.e]{1,3}"#],
        before in "[ab:_]{0,2}",
    ) {
        let mut pairs = Vec::new();
        if let Some(name) = plain::parse(&line, &before, &mut pairs) {
            let Some(Line::Sample(sample)) = line::parse(&line) else { panic!("a sample") };
            prop_assert_eq!(name, &sample.name);
            let labels: Vec<_> = sample.labels.iter().map(|l| (&*l.name, l.value)).collect();
            prop_assert_eq!(pairs, labels);
            let mut merged = Merged::default();
            merged.begin(&Page { backend: "x", text: b"" });
            let (mut copied, mut written) = (Vec::new(), String::new());
            let piece = Piece { line: &line, page: 0, name: name.len() };
            merged.write(&mut copied, &piece, &mut String::new());
            write_sample(&mut written, &merged.labels[0], &sample);
            prop_assert_eq!(copied, written.into_bytes());
        }
    }

    #[test]
    fn good_pages_lose_nothing(texts in prop::collection::vec(good_page(), 1..4)) {
        let texts: Vec<_> = ["x", "y", "z"].into_iter().zip(texts.iter().map(|s| &**s)).collect();
        let (text, left_out) = merge(&pages(&texts), b"");
        prop_assert_eq!(left_out, 0);
        let families = strict::parse(&text).expect("it is strict");
        prop_assert_eq!(strict::check_histograms(&families), Ok(()));
        let samples = |families: Vec<strict::Family>| {
            families.into_iter().flat_map(|family| family.samples)
        };
        let facts = |sample: strict::Sample| {
            (sample.name, sample.labels, sample.value.to_bits(), sample.timestamp)
        };
        let mut expected = vec![];
        for (backend, text) in &texts {
            for mut sample in samples(strict::parse(text.as_bytes()).expect("a good page")) {
                let labels = &mut sample.labels;
                if let Some(value) = labels.remove("backend") {
                    labels.insert("exported_backend".to_string(), value);
                }
                labels.insert("backend".to_string(), backend.to_string());
                expected.push(facts(sample));
            }
        }
        let mut found: Vec<_> = samples(families).map(facts).collect();
        found.sort();
        expected.sort();
        prop_assert_eq!(found, expected);
    }
}
