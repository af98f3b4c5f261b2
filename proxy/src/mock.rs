//! `vllm-proxy mock`: one simulated vLLM server, for trying routing without a GPU and for tests.
//!
//! Owns the options, the start and the end. What the model says and how long it takes comes from
//! `vllm-proxy-sim`; how vLLM words it lies in the files below. Nothing here knows the proxy, and
//! its HTTP is not the proxy's own, so that it is an independent witness in tests.

mod adapters;
mod answers;
mod anthropic;
mod audio;
mod check;
mod clock;
mod connection;
mod dev;
mod dialect;
mod engine;
mod events;
mod form;
mod generate;
mod machine;
mod metrics;
mod openai;
mod orders;
mod power;
mod prompt;
mod realtime;
mod request;
mod responses;
mod routes;
mod run;
mod state;
mod store;
mod tokens;
mod websocket;
mod wire;

use crate::stop;
use clap::builder::{
    NonEmptyStringValueParser, PossibleValuesParser, RangedU64ValueParser, TypedValueParser,
};
use http_types::StatusCode;
use machine::BLOCK_TOKENS;
use run::Pace;
use smol::channel::{Receiver, Sender, bounded};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vllm_proxy_sim::faults::Chances;
use vllm_proxy_sim::vllm::{Gpu, Options};

const AFTER_HELP: &str = "\
Text:
  The model says three-letter words that follow from the prompt and --seed: the same request gets
  the same text, wherever it runs. Four bytes of text are one token, in prompts and in answers.

Timing and cache:
  It computes step by step as vLLM does: prompts and answers share a batch, long prompts are cut in
  chunks, and what does not fit waits or, when the KV cache is full, begins anew. How long a step
  takes follows from --gpu; the options of timing override that. Prompts that begin like earlier
  ones are not computed as far as they do, in full blocks of 16 tokens of the rendered prompt
  (tools, system, messages), answers included; other models, adapters and values of cache_salt share
  nothing.
  A client that leaves ends its request at once.

Routes that vLLM has only with some options:
  --dev-mode: an engine that is paused or asleep answers 503, in streams by an event. There is one
  worker, and whatever /collective_rpc asks of it, it returns the first argument.
  --runtime-lora: no adapter is found at a path that ends in /missing.
  --transcription: texts begin with the name and the size of the file.
  --realtime: each piece of audio is heard as one word.

Orders within a request:
  The JSON field \"mock\" of a request, which a real vLLM ignores, overrides the options:
    \"ttft_ms\": N    in place of all that passes before the first token
    \"itl_ms\": N     between the tokens, whatever the machine does
    \"tokens\": N     in place of --tokens
    \"fail\": FAULT   one of
      500, 503, ..   an error answer with this status, in vLLM's words
      \"hang\"         no byte of an answer, on an open connection
      \"close\"        the connection is closed instead of an answer
      \"reset\"        the connection is reset instead of an answer
      \"cut\"          the answer stops half-way, its connection closes without the last chunk
      \"stall\"        the answer stops half-way, its connection stays open
      \"event\"        a stream that says 200 and then holds an error event (unstreamed: an error
                     answer)
      \"unknown_model\"  404, as if the model were not there
      \"crash\"        the whole server ends
      \"none\"         no fault, whatever the options say
    \"after\": N      tokens of a stream before cut, stall (default: half of them) or event (0)
    \"status\": N     code of that event (default: 500)
  Forms take it as a field of this name that holds JSON.

Examples:
  vllm-proxy mock --port 8001 --model demo/chat-8b
  vllm-proxy mock --port 8002 --model demo/chat-8b --model chat --fail-rate 0.1 --seed 7
  curl -N http://127.0.0.1:8001/v1/chat/completions -H 'content-type: application/json' -d \\
    '{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true,\"mock\":{\"fail\":\"cut\",\"after\":3}}'";

const SECOND_NS: u64 = 1_000_000_000;

/// The most of anything that is counted.
const MANY: u64 = u32::MAX as u64;

/// One simulated vLLM server (no GPU): for trying routing, for tests.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Address to listen on
    #[arg(short = 'H', long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    pub(crate) host: IpAddr,

    /// Port to listen on; 0 picks one and logs it
    #[arg(short, long, default_value_t = 8001)]
    pub(crate) port: u16,

    /// Unix socket to listen on in place of --host and --port
    #[arg(long, value_name = "PATH")]
    pub(crate) uds: Option<PathBuf>,

    /// Name of the model; repeated for aliases: all are accepted, the first is in every answer
    #[arg(short, long = "model", default_value = "demo/chat-8b", value_name = "NAME")]
    #[arg(help_heading = "Model", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) models: Vec<String>,

    /// LoRA adapter on the model, there from the start; repeatable. Without a path it is
    /// /adapters/NAME
    #[arg(long = "lora", value_name = "NAME[=PATH]", help_heading = "Model", value_parser = adapter)]
    pub(crate) loras: Vec<Adapter>,

    /// Tokens that prompt and answer have room for together
    #[arg(long, default_value_t = 131_072, value_name = "TOKENS", help_heading = "Model")]
    #[arg(value_parser = RangedU64ValueParser::<u32>::new().range(1..=MANY))]
    pub(crate) max_model_len: u32,

    /// Length of an answer, unless the request allows less (or sets ignore_eos or min_tokens)
    #[arg(long, default_value_t = 64, value_name = "TOKENS", help_heading = "Model")]
    #[arg(value_parser = RangedU64ValueParser::<u32>::new().range(1..=MANY))]
    pub(crate) tokens: u32,

    /// Number that texts, ids and faults follow from
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Model")]
    pub(crate) seed: u64,

    /// Hardware whose speed and memory it has: h100 or a100, with a model of 8B
    #[arg(long, default_value = "h100", value_name = "GPU", help_heading = "Hardware")]
    #[arg(hide_possible_values = true, value_parser = gpu_parser())]
    pub(crate) gpu: Gpu,

    /// Blocks of 16 tokens that the KV cache has, in place of the hardware's 25,000. Lowers
    /// --max-model-len to what fits
    #[arg(long, value_name = "BLOCKS", help_heading = "Hardware")]
    #[arg(value_parser = RangedU64ValueParser::<u32>::new().range(2..=1_000_000))]
    pub(crate) num_gpu_blocks_override: Option<u32>,

    /// Answers in the batch at once, in place of the hardware's 256; more requests wait
    #[arg(long, value_name = "N", help_heading = "Hardware")]
    #[arg(value_parser = RangedU64ValueParser::<u32>::new().range(1..=MANY))]
    pub(crate) max_num_seqs: Option<u32>,

    /// Compute every prompt as if it were the first of its kind
    #[arg(long = "no-enable-prefix-caching", help_heading = "Hardware")]
    pub(crate) no_prefix_caching: bool,

    /// Milliseconds before the first token, apart from reading the prompt; one step at least
    #[arg(long, default_value_t = 0, value_name = "MS", help_heading = "Timing")]
    pub(crate) ttft_ms: u32,

    /// Prompt tokens read a second, all prompts together, in place of the hardware's; 0 reads at
    /// once
    #[arg(long, value_name = "TOKENS", help_heading = "Timing")]
    pub(crate) prefill_tps: Option<u32>,

    /// Milliseconds between the tokens of one answer, however many there are, in place of the
    /// hardware's; 0 sends them in one burst
    #[arg(long, value_name = "MS", help_heading = "Timing")]
    pub(crate) itl_ms: Option<u32>,

    /// Tokens a second of one answer, in place of --itl-ms
    #[arg(long, value_name = "TOKENS", conflicts_with = "itl_ms", help_heading = "Timing")]
    #[arg(value_parser = RangedU64ValueParser::<u32>::new().range(1..=MANY))]
    pub(crate) decode_tps: Option<u32>,

    /// Share of generation requests, 0 to 1, that get an error answer
    #[arg(long, default_value_t = 0.0, value_parser = share, value_name = "SHARE")]
    #[arg(help_heading = "Faults")]
    pub(crate) fail_rate: f64,

    /// Status of these error answers
    #[arg(long, default_value_t = 500, value_name = "STATUS", help_heading = "Faults")]
    #[arg(value_parser = error_status)]
    pub(crate) fail_status: u16,

    /// Share of generation requests that never get a byte of an answer
    #[arg(long, default_value_t = 0.0, value_parser = share, value_name = "SHARE")]
    #[arg(help_heading = "Faults")]
    pub(crate) hang_rate: f64,

    /// Share of generation requests whose answer is cut off half-way
    #[arg(long, default_value_t = 0.0, value_parser = share, value_name = "SHARE")]
    #[arg(help_heading = "Faults")]
    pub(crate) cut_rate: f64,

    /// Tell streams their error in an event after a 200, and not by a status
    #[arg(long, help_heading = "Faults")]
    pub(crate) fail_in_stream: bool,

    /// Name of a model or adapter that is listed, and yet answered with 404; repeatable
    #[arg(long = "deny-model", value_name = "NAME", help_heading = "Faults")]
    pub(crate) denied_models: Vec<String>,

    /// Generation request, counted from 1, at which the whole server ends as if it had crashed
    #[arg(long, value_name = "N", help_heading = "Faults")]
    pub(crate) crash_at: Option<u64>,

    /// Key that clients must show (`Authorization: Bearer KEY`) on the routes where vLLM asks for
    /// it
    #[arg(long, value_name = "KEY", help_heading = "vLLM")]
    pub(crate) api_key: Option<String>,

    /// Tell in usages how many tokens of the prompt were cached; without it only /v1/responses does
    #[arg(long = "enable-prompt-tokens-details", help_heading = "vLLM")]
    pub(crate) prompt_tokens_details: bool,

    /// Keep responses for `GET /v1/responses/{id}` and `previous_response_id`, as vLLM does with
    /// VLLM_ENABLE_RESPONSES_API_STORE=1
    #[arg(long, alias = "store-responses", help_heading = "vLLM")]
    pub(crate) response_store: bool,

    /// Have the routes that vLLM has with VLLM_SERVER_DEV_MODE=1: /sleep, /pause, /collective_rpc..
    #[arg(long, help_heading = "vLLM")]
    pub(crate) dev_mode: bool,

    /// Have the routes that load and unload adapters, as vLLM has with
    /// VLLM_ALLOW_RUNTIME_LORA_UPDATING=1
    #[arg(long, help_heading = "vLLM")]
    pub(crate) runtime_lora: bool,

    /// Have /v1/audio/transcriptions and /v1/audio/translations, as models of speech have
    #[arg(long, help_heading = "vLLM")]
    pub(crate) transcription: bool,

    /// Have the websocket /v1/realtime, as models of speech have that hear while one speaks
    #[arg(long, help_heading = "vLLM")]
    pub(crate) realtime: bool,

    /// Count requests in hand for /load (vLLM: --enable-server-load-tracking)
    #[arg(long, help_heading = "vLLM")]
    pub(crate) load_tracking: bool,

    /// ZeroMQ endpoint that /kv_event_sources names; nothing is published there
    #[arg(long, value_name = "ENDPOINT", help_heading = "vLLM")]
    pub(crate) kv_events: Option<String>,

    /// Prefix under which all routes answer as well
    #[arg(long, value_name = "PREFIX", help_heading = "vLLM", value_parser = root_path)]
    pub(crate) root_path: Option<String>,

    /// Version that GET /version tells
    #[arg(long, default_value = "0.33.0", value_name = "VERSION", help_heading = "vLLM")]
    pub(crate) version: String,

    /// Its name, if it is to log each generation at info: in the demo that is the show.
    #[arg(skip)]
    pub(crate) announce: Option<String>,
}

/// A LoRA adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Adapter {
    pub(crate) name: String,
    pub(crate) path: String,
}

fn adapter(value: &str) -> Result<Adapter, String> {
    let (name, path) = match value.split_once('=') {
        None => (value, format!("/adapters/{value}")),
        Some((name, path)) => (name, path.to_owned()),
    };
    if name.is_empty() || path.is_empty() {
        return Err("expected a name, and perhaps `=` and a path".to_owned());
    }
    Ok(Adapter { name: name.to_owned(), path })
}

fn gpu_parser() -> impl TypedValueParser<Value = Gpu> {
    PossibleValuesParser::new(["h100", "a100"])
        .try_map(|name| Gpu::named(&name).ok_or("no such hardware"))
}

fn root_path(value: &str) -> Result<String, String> {
    let prefix = value.trim_end_matches('/');
    if prefix.starts_with('/') { Ok(prefix.to_owned()) } else { Err("expected /prefix".to_owned()) }
}

fn share(value: &str) -> Result<f64, String> {
    match value.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Ok(_) | Err(_) => Err("not a number from 0 to 1".to_owned()),
    }
}

fn error_status(value: &str) -> Result<u16, String> {
    match value.parse().ok().filter(|status| (400..600).contains(status)) {
        Some(status) if StatusCode::try_from(status).is_ok() => Ok(status),
        Some(_) | None => Err("not a registered status from 400 to 599".to_owned()),
    }
}

impl Args {
    /// The hardware, as it is or as it was ordered.
    fn machine(&self) -> Options {
        let mut gpu = self.gpu;
        let millis = |millis: u32| u64::from(millis) * 1_000_000;
        let step = self.decode_tps.map(|rate| SECOND_NS / u64::from(rate));
        if let Some(step) = step.or(self.itl_ms.map(millis)) {
            // Each takes as long as it was told to, however many there are.
            gpu = Gpu { fixed_ns: step, decode_ns: 0, context_ns: 0, ..gpu };
        }
        if let Some(rate) = self.prefill_tps {
            gpu.prefill_ns = SECOND_NS.checked_div(rate.into()).unwrap_or(0);
        }
        if let Some(blocks) = self.num_gpu_blocks_override {
            gpu.kv_tokens = u64::from(blocks) * u64::from(BLOCK_TOKENS);
        }
        if let Some(requests) = self.max_num_seqs {
            gpu.requests_max = usize::try_from(requests).unwrap_or(usize::MAX);
        }
        let prefix_caching = !self.no_prefix_caching;
        Options { prefix_caching, ..Options::new(gpu, BLOCK_TOKENS) }
    }

    /// Tokens that one request can have in the cache. vLLM keeps one block back.
    fn kv_room(&self) -> u32 {
        let tokens = self.machine().kv_tokens.saturating_sub(BLOCK_TOKENS.into());
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// What comes on top of the machine's time. The first step is part of what was ordered.
    fn pace(&self) -> Pace {
        let step = Duration::from_nanos(self.machine().gpu.fixed_ns);
        let first = Duration::from_millis(self.ttft_ms.into());
        Pace { later: first.saturating_sub(step), ..Pace::default() }
    }

    const fn chances(&self) -> Chances {
        Chances {
            fail: self.fail_rate,
            fail_status: self.fail_status,
            fail_in_stream: self.fail_in_stream,
            hang: self.hang_rate,
            cut: self.cut_rate,
        }
    }

    /// The name in every answer.
    fn canonical(&self) -> &str {
        self.models.first().map_or("", String::as_str)
    }
}

/// Serves until a signal (or an ordered crash) ends it.
pub(crate) fn run(args: Args) -> Result<(), String> {
    let (stop, stopped) = bounded(1);
    let (first, second) = (stop.clone(), stop.clone());
    // One is enough: it stays in the channel until it is heard.
    let ask = |stop: Sender<End>| move || stop.try_send(End::Asked).unwrap_or_default();
    stop::on_signals(ask(first), ask(second))
        .map_err(|error| format!("cannot await signals: {error}"))?;
    let place = match &args.uds {
        None => SocketAddr::new(args.host, args.port).to_string(),
        Some(path) => path.display().to_string(),
    };
    let end = listen(args, (stop, stopped))
        .and_then(|server| smol::block_on(server.serve()))
        .map_err(|error| format!("cannot listen on {place}: {error}"))?;
    match end {
        End::Asked => Ok(()),
        End::Crash => Err("crashed, as ordered".to_owned()),
    }
}

/// Why a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A signal, or its [`Handle`].
    Asked,
    /// `--crash-at`, or a request's order.
    Crash,
}

fn listen(args: Args, ends: (Sender<End>, Receiver<End>)) -> io::Result<connection::Server> {
    let server = connection::Server::bind(args, ends)?;
    let url = server.url();
    log::info!(model = server.model(), url = url.as_str(); "mock vLLM serving");
    Ok(server)
}

/// A simulated server on a thread of this process.
#[derive(Debug)]
pub(crate) struct Handle {
    address: SocketAddr,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns when the server has ended, as it does when a request orders it to crash.
    pub(crate) fn wait(self) {
        // A panic of the mock has been reported by the panic hook; it is an end as well.
        let _ = self.thread.join();
    }
}

/// Starts a server on a thread of its own; it accepts connections when this returns.
pub(crate) fn spawn(args: Args) -> io::Result<Handle> {
    let server = listen(args, bounded(1))?;
    let address = server.address()?;
    let thread = thread::Builder::new().name("mock".to_owned()).spawn(move || {
        if let Err(error) = smol::block_on(server.serve()) {
            log::warn!(error:%; "mock vLLM ended");
        }
    })?;
    Ok(Handle { address, thread })
}
