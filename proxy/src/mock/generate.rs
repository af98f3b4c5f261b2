//! One generation from its admission to its last byte, with the fault that may befall it.

use super::End;
use super::answers::{Answer, stream};
use super::connection::{Connection, Job};
use super::dialect::{Choice, Dialect, Trouble, Usage};
use super::engine::Engine;
use super::events::{self, Pieces};
use super::orders::Ordered;
use super::request::Ask;
use super::run::{Run, Token};
use super::state::Mock;
use super::store::Background;
use http_types::Response;
use smol::future::pending;
use std::rc::Rc;
use vllm_proxy_sim::faults::Fault;
use vllm_proxy_sim::reply::Finish;

/// How the tokens of a stream end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Whole,
    Cut,
    Stall,
    Event(Trouble),
}

/// Answers `ask`; the future is dropped when the client leaves, which is the abort.
///
/// An error makes the connection close without another byte.
pub(super) async fn generate(
    connection: &Connection,
    ask: Ask,
    in_words: fn(Answer) -> Answer,
) -> http_types::Result<Response> {
    let mock = &connection.mock;
    let fault = match (ask.fault, mock.draw()) {
        (Ordered::Fault(fault), _) => fault,
        (Ordered::Nothing, drawn) => drawn,
    };
    let show = Show::begin(mock, &ask, fault);
    let ending = match fault {
        None if mock.power.refuses() => {
            let trouble = Trouble::PAUSED;
            if !ask.stream || ask.background.is_some() {
                let answer = Answer::error(trouble.status, trouble.kind(), trouble.message, None);
                return Ok(in_words(answer).into_response());
            }
            return Ok(fail(connection, ask.dialect, trouble));
        }
        None => Ending::Whole,
        Some(Fault::Cut) => Ending::Cut,
        Some(Fault::Stall) => Ending::Stall,
        Some(Fault::Event(status)) if ask.stream => Ending::Event(Trouble::ordered(status)),
        Some(Fault::Event(status) | Fault::Status(status)) => {
            return Ok(in_words(Answer::failure(status)).into_response());
        }
        Some(Fault::UnknownModel) => {
            return Ok(in_words(mock.unknown(&ask.model)).into_response());
        }
        Some(Fault::Hang) => {
            connection.watch(None);
            pending().await
        }
        Some(Fault::Close) => return Err(events::cut().into()),
        Some(Fault::Reset) => {
            connection.reset_on_close();
            return Err(events::cut().into());
        }
        Some(Fault::Crash) => {
            mock.end(End::Crash);
            pending().await
        }
    };
    let Ask { id, stream: streamed, prompt_tokens, sequences, pace, after, mut dialect, .. } = ask;
    let engine: &Rc<Engine> = &mock.engine;
    let total = sequences.iter().fold(0, |sum: u32, one| sum.saturating_add(one.reply.tokens()));
    let run = engine.admit(&id, prompt_tokens, sequences, pace);
    if let Some(making) = ask.background {
        let queued = Answer::json(dialect.queued());
        let work = apart(run, dialect, Rc::clone(&making), show);
        mock.in_background(Rc::clone(&making).job(work));
        return Ok(if streamed { making.answer(connection, 0) } else { queued.into_response() });
    }
    if streamed {
        let (pieces, body) = events::channel();
        let after = match ending {
            Ending::Whole => u32::MAX,
            Ending::Event(_) => after.unwrap_or(0),
            Ending::Cut | Ending::Stall => after.unwrap_or(total / 2),
        };
        let job: Job = Box::pin(speak(run, dialect, pieces, (ending, after.min(total)), show));
        connection.watch(Some(job));
        return Ok(stream(body));
    }
    connection.watch(None);
    let (answer, usage) = whole(run, dialect.as_mut()).await;
    let answer = Answer::json(answer);
    show.end(usage);
    Ok(match ending {
        Ending::Whole | Ending::Event(_) => answer.into_response(),
        Ending::Cut => answer.half(|bytes| events::partial(bytes, true)),
        Ending::Stall => answer.half(|bytes| events::partial(bytes, false)),
    })
}

/// Tells a generation's story in the log of a server that is on show (see [`Args::announce`]).
///
/// [`Args::announce`]: super::Args::announce
struct Show {
    server: Option<String>,
}

impl Show {
    fn begin(mock: &Mock, ask: &Ask, fault: Option<Fault>) -> Self {
        let server = mock.args.announce.clone();
        if let Some(server) = &server {
            let (server, prompt_tokens, stream) = (server.as_str(), ask.prompt_tokens, ask.stream);
            match fault {
                None => log::info!(server, prompt_tokens, stream; "request arrived"),
                Some(fault) => {
                    log::info!(server, prompt_tokens, stream, fault:?; "request arrived");
                }
            }
        }
        Self { server }
    }

    /// The answer is complete.
    fn end(mut self, usage: Usage) {
        if let Some(server) = self.server.take() {
            let cached_tokens = usage.cached.read;
            log::info!(server = server.as_str(), cached_tokens; "answer complete");
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            log::info!(server = server.as_str(); "answer broken off");
        }
    }
}

/// Gathers a whole answer.
async fn whole(mut run: Run, dialect: &mut dyn Dialect) -> (String, Usage) {
    let nothing = Choice { text: String::new(), finish: Finish::Stop };
    let mut choices = vec![nothing; run.sequences()];
    let mut usage = Usage { prompt: run.prompt_tokens(), ..Usage::default() };
    while let Some(token) = run.next().await {
        let choice = &mut choices[token.choice];
        choice.text.push_str(token.text);
        choice.finish = token.finish.unwrap_or(choice.finish);
        usage.completion += token.tokens();
    }
    // Of several sequences vLLM tells here what the last one found..
    usage.cached = run.cached(run.sequences().saturating_sub(1));
    (dialect.whole(&choices, usage), usage)
}

/// A stream that begins with its error.
fn fail(connection: &Connection, mut dialect: Box<dyn Dialect>, trouble: Trouble) -> Response {
    let (pieces, body) = events::channel();
    connection.watch(Some(Box::pin(async move {
        let mut events = Vec::new();
        dialect.opening(&mut events);
        let told = dialect.failure(&trouble, &mut events);
        flush(&mut events, &pieces).await;
        if !told {
            let _ = pieces.send(Err(events::cut())).await;
        }
    })));
    stream(body)
}

/// Makes an answer that nobody waits for.
async fn apart(mut run: Run, mut dialect: Box<dyn Dialect>, making: Rc<Background>, show: Show) {
    if !making.is_stream() {
        let (_, usage) = whole(run, dialect.as_mut()).await;
        return show.end(usage);
    }
    let mut events = Vec::new();
    let mut usage = Usage { prompt: run.prompt_tokens(), ..Usage::default() };
    dialect.opening(&mut events);
    while let Some(token) = run.next().await {
        if usage.completion == 0 {
            usage.cached = run.cached(token.choice);
            dialect.first(&mut events);
        }
        dialect.token(token, &mut events);
        usage.completion += token.tokens();
        events.drain(..).for_each(|event| making.push(event));
    }
    dialect.closing(usage, &mut events);
    events.drain(..).for_each(|event| making.push(event));
    show.end(usage);
}

/// Writes a stream token by token, until its end or the fault.
async fn speak(
    mut run: Run,
    mut dialect: Box<dyn Dialect>,
    pieces: Pieces,
    (ending, after): (Ending, u32),
    show: Show,
) {
    let mut events = Vec::new();
    let mut usage = Usage { prompt: run.prompt_tokens(), ..Usage::default() };
    dialect.opening(&mut events);
    flush(&mut events, &pieces).await;
    loop {
        let token = run.next().await;
        if ending != Ending::Whole && usage.completion == after {
            break;
        }
        if usage.completion == 0 {
            // ..and in streams what the first one did that spoke.
            usage.cached = token.map_or(usage.cached, |token| run.cached(token.choice));
            dialect.first(&mut events);
        }
        match token {
            Some(token) => dialect.token(token, &mut events),
            None => {
                dialect.closing(usage, &mut events);
                show.end(usage);
                return flush(&mut events, &pieces).await;
            }
        }
        usage.completion += token.map_or(0, Token::tokens);
        flush(&mut events, &pieces).await;
    }
    let told = match &ending {
        Ending::Event(trouble) => dialect.failure(trouble, &mut events),
        Ending::Whole | Ending::Cut | Ending::Stall => false,
    };
    flush(&mut events, &pieces).await;
    match ending {
        Ending::Stall => pending().await,
        _ if told => {}
        // Nothing to say, or an API that says nothing: the connection just breaks.
        Ending::Whole | Ending::Cut | Ending::Event(_) => {
            let _ = pieces.send(Err(events::cut())).await;
        }
    }
}

/// Sends each event as a piece of its own.
async fn flush(events: &mut Vec<String>, pieces: &Pieces) {
    for event in events.drain(..) {
        // It fails when the reading half is gone, and then this future soon is as well.
        let _ = pieces.send(Ok(event.into_bytes())).await;
    }
}
