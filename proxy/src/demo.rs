//! `vllm-proxy demo`: three simulated vLLM servers and a proxy over them in one process, and a page
//! of things to try.
//!
//! Owns the stage only: the servers are [`mock`]'s, the proxy is the same as anyone runs. A server
//! that was told to crash comes back after a while, so that it can be told again.

use crate::cli::{GlobalArgs, ServerArgs};
use crate::config::{self, Globals};
use crate::{mock, serve, stop};
use clap::Parser;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

/// The servers' models: two replicas of one, and another.
const MODELS: [&str; 3] = ["demo/chat-8b", "demo/chat-8b", "demo/code-32b"];

/// How long a crashed server stays away: long enough to see that the other one takes over.
const AWAY: Duration = Duration::from_secs(20);

/// Three simulated vLLM servers and a proxy over them, on loopback.
///
/// Starts three simulated vLLM servers and a proxy over them on 127.0.0.1, prints requests to try,
/// and logs which server each of them goes to, until Ctrl-C or the end of the terminal. Needs no
/// GPU, no model and no Redis.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Port of the proxy; 0 picks one
    #[arg(short, long, default_value_t = 8000)]
    port: u16,
}

/// Runs the demo until a signal ends it.
pub(crate) fn run(globals: &Globals, args: &Args) -> Result<(), String> {
    // A proxy outlives its terminal. A demo would keep its port, and nobody would know why.
    stop::at_hangup().map_err(|error| format!("cannot await signals: {error}"))?;
    let proxy = free(args.port)?;
    let mut servers = Vec::new();
    for (index, model) in MODELS.iter().enumerate() {
        servers.push((*model, start(index, model)?));
    }
    explain(proxy, &servers).map_err(|error| format!("cannot print: {error}"))?;

    let word = |word: &str| vec![OsString::from(word)];
    let off = GlobalArgs { redis: word("off"), ..GlobalArgs::default() };
    let server = ServerArgs {
        upstreams: servers.iter().map(|(_, at)| format!("http://{at}").into()).collect(),
        host: word(&proxy.ip().to_string()),
        port: word(&proxy.port().to_string()),
        // No load balancer waits for this one, and no one wants to wait for its end.
        drain_grace: word("0"),
        drain_timeout: word("1"),
        ..ServerArgs::default()
    };
    let (off, server) = config::server(&off, &server, &config::no_environment)
        .map_err(|error| format!("cannot set up the proxy: {error}"))?;
    let globals = Globals {
        redis: off.redis,
        redis_named: off.redis_named,
        level: globals.level,
        log_format: globals.log_format,
        http_timeout: globals.http_timeout,
    };
    serve::run(&globals, server)
}

/// Where the proxy is to listen. Found out before anything else starts, so that what is printed is
/// true: a port that is taken is the likeliest thing to go wrong here.
fn free(port: u16) -> Result<SocketAddr, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).and_then(|listener| listener.local_addr()).map_err(|error| {
        let reason = if error.kind() == io::ErrorKind::AddrInUse {
            "the port is taken; choose another with --port".to_owned()
        } else {
            error.to_string()
        };
        format!("cannot listen on {address}: {reason}")
    })
}

/// Starts the server number `index` on a port of its own, and whenever it has crashed again.
fn start(index: usize, model: &str) -> Result<SocketAddr, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot start a mock vLLM: {error}");
    let mut args = options(index, model).map_err(|error| failed(&error))?;
    let mut server = mock::spawn(args.clone()).map_err(|error| failed(&error))?;
    let address = server.address();
    args.port = address.port();
    let name = args.announce.clone().unwrap_or_default();
    thread::Builder::new()
        .name("demo".to_owned())
        .spawn(move || {
            loop {
                server.wait();
                log::warn!(server = name.as_str(), back_in_s = AWAY.as_secs(); "mock vLLM crashed");
                thread::sleep(AWAY);
                server = match mock::spawn(args.clone()) {
                    Ok(server) => server,
                    Err(error) => {
                        log::warn!(server = name.as_str(), error:%; "mock vLLM stays away");
                        return;
                    }
                };
                log::info!(server = name.as_str(); "mock vLLM is back");
            }
        })
        .map_err(|error| failed(&error))?;
    Ok(address)
}

/// The options of a mock, as if they had been written on a command line.
fn options(index: usize, model: &str) -> Result<mock::Args, clap::Error> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        mock: mock::Args,
    }
    // Slow enough to be watched.
    let pace = ["--ttft-ms", "150", "--itl-ms", "40", "--enable-prompt-tokens-details"];
    let line = [&["mock", "--port", "0", "--model", model][..], &pace].concat();
    let mut args = Line::try_parse_from(line)?.mock;
    args.announce = Some(format!("{} ({model})", index + 1));
    Ok(args)
}

/// Prints what there is and what to try, in one piece: the log is written by another thread.
#[expect(clippy::print_stdout, reason = "this page is what people start the demo for")]
fn explain(proxy: SocketAddr, servers: &[(&str, SocketAddr)]) -> io::Result<()> {
    print!("{}", page(proxy, servers));
    io::stdout().flush()
}

fn page(proxy: SocketAddr, servers: &[(&str, SocketAddr)]) -> String {
    let list: String = servers
        .iter()
        .enumerate()
        .map(|(index, (model, at))| format!("  {}  {model:<14}  http://{at}\n", index + 1))
        .collect();
    let first = servers.first().map_or(proxy, |(_, at)| *at);
    let json = "-H 'content-type: application/json'";
    format!(
        r#"
Three simulated vLLM servers are running:

{list}
and one proxy over them: http://{proxy}
How it is doing, in a browser: http://{proxy}/proxy/

Try these in another terminal.

  The models of all servers, behind one address:
    curl http://{proxy}/v1/models

  A chat. Repeat it: either of servers 1 and 2 may answer, with the same words:
    curl http://{proxy}/v1/chat/completions {json} \
      -d '{{"model":"demo/chat-8b","messages":[{{"role":"user","content":"Hello!"}}]}}'

  The same word by word. Press Ctrl-C in the midst of it: the server stops at once:
    curl -N http://{proxy}/v1/chat/completions {json} \
      -d '{{"model":"demo/chat-8b","messages":[{{"role":"user","content":"Hello!"}}],"stream":true}}'

  A longer prompt. Repeat it: it goes to the server that has read it, which computes only its end.
  `cached_tokens` in the answer says how much it found, the log below as well. Put another question
  after the same instructions: it finds those:
    curl http://{proxy}/v1/chat/completions {json} \
      -d '{{"model":"demo/chat-8b","max_tokens":9,"messages":[
           {{"role":"system","content":"You are a patient guide. Answer in one short sentence."}},
           {{"role":"system","content":"Never use a long word where a short one will do. If a word"}},
           {{"role":"system","content":"can be cut, cut it. Prefer the concrete to the abstract,"}},
           {{"role":"system","content":"and an example to a rule. Say what a thing does before"}},
           {{"role":"system","content":"you say how it does it. Numbers need units, and units"}},
           {{"role":"system","content":"need numbers. If you do not know, say so at once, and"}},
           {{"role":"system","content":"name who may. Ask back if a question has two meanings."}},
           {{"role":"system","content":"Do not repeat the question. Do not praise it either."}},
           {{"role":"system","content":"Do not end with an offer of more: who wants more asks."}},
           {{"role":"system","content":"Be kind to those who are new here, and brief to others."}},
           {{"role":"user","content":"What is a prefix cache?"}}]}}'

  The other model, in Anthropic's words. Only server 3 has it:
    curl http://{proxy}/v1/messages {json} \
      -d '{{"model":"demo/code-32b","max_tokens":9,"messages":[{{"role":"user","content":"Hi"}}]}}'

  A model that no server has:
    curl -i http://{proxy}/v1/chat/completions {json} \
      -d '{{"model":"demo/none","messages":[{{"role":"user","content":"Hello!"}}]}}'

  Crash server 1, past the proxy: this curl gets an empty reply. Go on chatting: server 2 takes
  over, nobody sees an error. Server 1 is back after {away} seconds:
    curl http://{first}/v1/completions {json} \
      -d '{{"prompt":"goodbye","mock":{{"fail":"crash"}}}}'

Below, the log tells which server gets which request. Ctrl-C ends it all.

"#,
        away = AWAY.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use vllm_proxy_core::route::CHUNK_BYTES;

    #[test]
    fn the_page_names_every_server_and_only_addresses_that_exist() {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let text = page(at(8000), &[("one", at(1)), ("two", at(2))]);
        assert!(text.contains("  1  one             http://127.0.0.1:1\n"), "{text}");
        assert!(text.contains("  2  two             http://127.0.0.1:2\n"), "{text}");
        let addresses = text.matches("http://").count();
        assert_eq!(text.matches("http://127.0.0.1:").count(), addresses);
    }

    #[test]
    fn the_bodies_on_the_page_are_json() {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let text = page(at(8000), &[("one", at(1))]);
        let bodies: Vec<_> =
            text.split("-d '").skip(1).filter_map(|rest| rest.split('\'').next()).collect();
        assert_eq!(bodies.len(), 6);
        for body in bodies {
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok(), "{body}");
        }
    }

    #[test]
    fn the_longer_prompt_is_long_enough_to_be_remembered() {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let text = page(at(8000), &[("one", at(1))]);
        let said = text.split(r#""role":"system","content":""#).skip(1);
        let instructions: usize =
            said.filter_map(|rest| rest.split('"').next()).map(str::len).sum();
        assert!(instructions > CHUNK_BYTES, "{instructions} bytes before the question");
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = free(port).unwrap_err();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
    }

    #[test]
    fn the_servers_options_are_understood() {
        for (index, model) in MODELS.iter().enumerate() {
            assert_eq!(options(index, model).unwrap().models, [*model]);
        }
    }
}
