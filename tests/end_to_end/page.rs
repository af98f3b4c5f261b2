//! The page for people, in a real browser: it renders, keeps up, says when it is cut off, loads
//! nothing from elsewhere, and takes names for names.

use crate::backend::Backend;
use crate::browser::Browser;
use crate::company::{hold, holding};
use crate::proxy::{Proxy, Runtime, eventually};
use crate::wire::chat;
use rstest::rstest;
use serde_json::json;

/// Markup, a script, and all that ends an attribute or a text.
const HOSTILE: &str =
    r#"<img src=x onerror="document.title='taken'">'&quot;</td></script><script>alert(1)</script>"#;

const RUNTIME: Runtime = if cfg!(feature = "smol") { Runtime::Smol } else { Runtime::Glommio };

fn shown(browser: &mut Browser, what: &str, expression: &str) {
    eventually(what, || browser.value(expression) == json!(true));
}

fn opened(name: &str, proxy: &Proxy) -> Browser {
    let mut browser = Browser::start(name);
    browser.open(&format!("http://{}/proxy/", proxy.address));
    shown(&mut browser, "it is live", "document.getElementById('link')?.textContent === 'live'");
    browser
}

/// Nothing went wrong, and nobody else was asked.
fn is_clean(browser: &Browser, proxy: &Proxy) {
    assert_eq!(browser.logged, Vec::<serde_json::Value>::new());
    let own = format!("http://{}/proxy/", proxy.address);
    let elsewhere = |url: &&String| {
        !url.starts_with(&own) && !url.starts_with("data:") && *url != "about:blank"
    };
    assert_eq!(browser.requests.iter().find(elsewhere), None);
    assert!(browser.requests.contains(&format!("{own}events")), "{:?}", browser.requests);
}

/// What a tile says, by its title.
fn tile(title: &str) -> String {
    format!(
        "[...document.querySelectorAll('.tile')].find((one) => \
         one.querySelector('h2').textContent === '{title}')?.querySelector('.value').textContent"
    )
}

#[rstest]
#[cfg_attr(no_chromium, ignore = "there was no chromium as this was built")]
fn it_shows_what_happens() {
    let (busy, idle) = (holding("hi"), Backend::named(&["other"], "hi"));
    let proxy = Proxy::with(RUNTIME, &[], &[&busy, &idle]);
    let mut browser = opened("page", &proxy);
    for backend in [&busy, &idle] {
        let row =
            format!("document.getElementById('rows').innerText.includes('{}')", backend.address());
        shown(&mut browser, "there is a row for it", &row);
    }
    assert_eq!(browser.text(&tile("Backends up")), "2 of 2");
    let held = hold(&proxy);
    busy.await_requests(1);
    shown(&mut browser, "one is in flight", &format!("{} === '1'", tile("In flight")));
    drop(held);
    shown(&mut browser, "none is in flight", &format!("{} === '0'", tile("In flight")));
    // Something was drawn of that.
    let line = "document.querySelector('#rows svg.plot .line').getAttribute('d').length > 10";
    shown(&mut browser, "there is a plot", line);
    let filter = "(() => { const input = document.getElementById('filter'); input.value = 'OTHER'; \
                  input.dispatchEvent(new Event('input')); \
                  return document.querySelectorAll('#rows tr').length })()";
    assert_eq!(browser.value(filter), 1);
    is_clean(&browser, &proxy);
}

#[rstest]
#[cfg_attr(no_chromium, ignore = "there was no chromium as this was built")]
fn names_are_no_markup() {
    // The backend writes names as they are between quotes.
    let written = json!(HOSTILE).to_string();
    let backend = Backend::named(&[written.trim_matches('"'), "m"], "hi");
    let path = "unix:///tmp/<img/src=x/onerror=alert(1)>".to_owned();
    let proxy = Proxy::before(RUNTIME, &[], &[backend.upstream(), path]);
    proxy.await_entries("backend is up", 1);
    let mut browser = opened("names", &proxy);
    let text = format!("document.body.innerText.includes({})", json!(HOSTILE));
    shown(&mut browser, "the model's name is there", &text);
    let text = "document.body.innerText.includes('<img/src=x/onerror=alert(1)>')";
    shown(&mut browser, "the path is there", text);
    assert_eq!(browser.value("document.querySelectorAll('main img, main script').length"), 0);
    assert!(browser.text("document.title").ends_with("vLLM Proxy"));
    is_clean(&browser, &proxy);
}

#[rstest]
#[cfg_attr(no_chromium, ignore = "there was no chromium as this was built")]
fn it_says_when_it_is_cut_off() {
    let backend = Backend::named(&["m"], "hi");
    let mut proxy = Proxy::with(RUNTIME, &["--drain-grace", "0"], &[&backend]);
    let address = proxy.address;
    let mut browser = opened("cut-off", &proxy);
    proxy.kill();
    let cut = "document.getElementById('link').textContent.startsWith('cut off for')";
    shown(&mut browser, "it is cut off", cut);
    assert_eq!(browser.value("document.body.classList.contains('old')"), true);
    drop(proxy);
    let port = address.port().to_string();
    let proxy = Proxy::with(RUNTIME, &["-p", &port], &[&backend]);
    assert_eq!(proxy.ask(&chat("m")), 200);
    let live = "document.getElementById('link').textContent === 'live' \
                && !document.body.classList.contains('old')";
    shown(&mut browser, "it is live again", live);
}

#[rstest]
#[cfg_attr(no_chromium, ignore = "there was no chromium as this was built")]
fn it_fits_and_can_be_read() {
    let backend = Backend::named(&["a-model/with-a-rather-long-name-and-no-blank-in-it"; 3], "hi");
    let proxy = Proxy::with(RUNTIME, &[], &[&backend]);
    let mut browser = opened("fits", &proxy);
    // WCAG 2.2 section 1.4.3: text against what is behind it, 4.5 at least.
    let contrast = "(() => { \
        const parts = (color) => color.match(/[\\d.]+/g).map(Number); \
        const light = (color) => { const [r, g, b] = parts(color).map((part) => { part /= 255; \
            return part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4; }); \
            return .2126 * r + .7152 * g + .0722 * b; }; \
        const behind = (node) => { for (; node; node = node.parentElement) { \
            const color = getComputedStyle(node).backgroundColor, of = parts(color); \
            if (of.length < 4 || of[3] > 0) return color; } }; \
        const texts = [...document.querySelectorAll('h1, h2, td, th, dt, dd, span, .soft, footer')]; \
        return Math.min(...texts.filter((node) => node.textContent).map((node) => { \
            const two = [light(getComputedStyle(node).color), light(behind(node))].sort(); \
            return (Math.max(...two) + .05) / (Math.min(...two) + .05); })); })()";
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        for width in [1_400, 800, 390, 320] {
            browser.resize(width, 900);
            let room = "document.documentElement.scrollWidth - window.innerWidth";
            assert!(browser.value(room).as_i64() <= Some(0), "{scheme}, {width} pixels wide");
        }
        let least = browser.value(contrast).as_f64().unwrap();
        assert!(least >= 4.5, "{scheme}: {least}");
        grounds.push(browser.text("getComputedStyle(document.body).backgroundColor"));
    }
    assert_ne!(grounds[0], grounds[1]);
    is_clean(&browser, &proxy);
}
