//! What the reactor promises, over pairs of Unix sockets and a real ring.

use super::*;
use crate::ring::Bytes;
use glommio::{LocalExecutorBuilder, Placement};
use rstest::rstest;
use rustix::net::SendFlags;
use socket2::SockRef;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Instant as Clocked;
use vllm_proxy_core::carry::{Lost, Read};
use vllm_proxy_core::rng::Rng;

/// Runs this on an executor with a reactor, or says that there is no ring to be had here.
fn on_executor<F: Future<Output = ()>>(test: impl FnOnce(Rc<Reactor>) -> F) {
    if let Err(error) = Ring::new() {
        println!("skipped: no ring can be made here: {error}");
        return;
    }
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(0).make();
    executor.expect("glommio's own rings can be made, too").run(async {
        test(Reactor::new(Clock::new(Clocked::now())).expect("a ring")).await;
    });
}

/// Runs a task while a reactor is driven.
fn with_reactor<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<Reactor>) -> F) {
    on_executor(|reactor| async move {
        let done = Rc::new(Cell::new(false));
        let ends = done.clone();
        let test = test(reactor.clone());
        let task = reactor.task(Box::pin(async move {
            test.await;
            ends.set(true);
        }));
        let task = glommio::spawn_local(task).detach();
        reactor.drive(|| done.get()).await;
        assert!(task.await.is_some(), "the test did not end");
    });
}

fn pair(reactor: &Rc<Reactor>) -> (Source, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("a socket");
    let source = reactor.watch(ours.into());
    source.receive();
    (source, theirs)
}

async fn received(source: &Source) -> Result<Read<Bytes>, Lost> {
    poll_fn(|cx| source.poll_received(cx)).await;
    source.read()
}

/// All that comes until the end.
async fn all_of(source: &Source) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match received(source).await {
            Ok(Read::Some { bytes, .. }) => all.extend_from_slice(&bytes),
            Ok(Read::Nothing) => {}
            Ok(Read::End) => return all,
            Err(Lost) => panic!("lost after {} bytes", all.len()),
        }
    }
}

/// Lets the ring turn, so that what is under way arrives.
async fn turn(reactor: &Reactor) {
    let mut turned = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut turned, true) {
            return Poll::Ready(());
        }
        reactor.next_turn(cx);
        Poll::Pending
    })
    .await;
}

/// Bytes that are nobody else's.
fn pattern(number: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(number);
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

#[rstest]
#[case::end_behind_the_bytes(true)]
#[case::end_after_the_bytes_were_read(false)]
fn bytes_and_the_end_are_both_seen(#[case] at_once: bool) {
    with_reactor(move |reactor| async move {
        let (source, mut theirs) = pair(&reactor);
        theirs.write_all(b"abc").expect("written");
        let mut theirs = Some(theirs);
        if at_once {
            theirs = None;
        }
        let Ok(Read::Some { bytes, .. }) = received(&source).await else { panic!("no bytes") };
        assert_eq!(&*bytes, b"abc");
        assert!(at_once || source.is_silent());
        drop(theirs);
        poll_fn(|cx| source.poll_ended(cx)).await;
        assert!(matches!(received(&source).await, Ok(Read::End)));
        assert!(!source.is_silent());
    });
}

#[test]
fn bytes_are_received_before_anybody_asks_and_kept_in_order() {
    with_reactor(|reactor| async move {
        let (source, mut theirs) = pair(&reactor);
        let sent = pattern(1, 20_000);
        for part in sent.chunks(1_000) {
            theirs.write_all(part).expect("written");
            turn(&reactor).await;
        }
        drop(theirs);
        assert!(!source.is_silent());
        assert_eq!(all_of(&source).await, sent);
    });
}

#[test]
fn who_does_not_read_leaves_the_buffers_to_others() {
    with_reactor(|reactor| async move {
        let mut idle = Vec::new();
        for number in 0..600 {
            let (source, mut theirs) = pair(&reactor);
            theirs.write_all(&pattern(number, 100)).expect("written");
            turn(&reactor).await;
            idle.push((source, theirs));
        }
        for (number, (source, theirs)) in idle.into_iter().enumerate() {
            drop(theirs);
            assert_eq!(all_of(&source).await, pattern(number as u64, 100));
        }
    });
}

#[test]
fn who_does_not_read_is_not_received_for_without_end() {
    with_reactor(|reactor| async move {
        let (source, mut theirs) = pair(&reactor);
        theirs.set_nonblocking(true).expect("a socket");
        let sent = pattern(7, 8 << 20);
        let mut written = 0;
        let mut idle_turns = 0;
        while idle_turns < 100 {
            match theirs.write(&sent[written..]) {
                Ok(bytes) => (written, idle_turns) = (written + bytes, 0),
                Err(_) => idle_turns += 1,
            }
            turn(&reactor).await;
        }
        assert!(written < 2 << 20, "{written} bytes were taken though nobody reads");
        theirs.set_nonblocking(false).expect("a socket");
        let rest = sent[written..].to_vec();
        let writer = std::thread::spawn(move || theirs.write_all(&rest));
        assert!(all_of(&source).await == sent, "bytes were lost or moved");
        writer.join().expect("joined").expect("written");
    });
}

#[test]
fn small_pieces_that_nobody_reads_become_one() {
    with_reactor(|reactor| async move {
        let (source, mut theirs) = pair(&reactor);
        let sent = pattern(3, 500);
        for byte in &sent {
            theirs.write_all(&[*byte]).expect("written");
            turn(&reactor).await;
        }
        let pieces = source.line.arrived.borrow().len();
        assert!(pieces <= 3, "{pieces} pieces of 500 bytes are kept");
        drop(theirs);
        assert!(all_of(&source).await == sent, "bytes were lost or moved");
    });
}

#[test]
fn a_full_source_becomes_writable_when_the_peer_reads() {
    with_reactor(|reactor| async move {
        let (source, mut theirs) = pair(&reactor);
        let chunk = [0; 4096];
        let mut written = 0;
        while let Some(more) =
            source.try_write(chunk.len(), |fd| rustix::io::write(fd, &chunk)).expect("no error")
        {
            written += more;
        }
        let reader = std::thread::spawn(move || {
            theirs.read_exact(&mut vec![0; written]).expect("read");
            theirs
        });
        poll_fn(|cx| source.poll_writable(cx)).await;
        reader.join().expect("joined");
    });
}

fn tcp_pair(reactor: &Rc<Reactor>) -> (Source, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let theirs = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (ours, _) = listener.accept().expect("accepted");
    ours.set_nonblocking(true).expect("a socket");
    let source = reactor.watch(ours.into());
    source.receive();
    (source, theirs)
}

fn fill(source: &Source) -> usize {
    let chunk = [0; 64 << 10];
    let mut written = 0;
    while let Some(more) = source
        .try_write(chunk.len(), |fd| rustix::net::send(fd, &chunk, SendFlags::NOSIGNAL))
        .expect("no error")
    {
        written += more;
    }
    written
}

#[test]
fn a_peer_that_ended_and_reads_nothing_keeps_nobody_busy() {
    with_reactor(|reactor| async move {
        let (source, mut theirs) = tcp_pair(&reactor);
        let mut written = fill(&source);
        theirs.shutdown(std::net::Shutdown::Write).expect("half closed");
        assert!(matches!(received(&source).await, Ok(Read::End)));
        let mut polls = 0;
        let mut pause = reactor.after(Duration::from_millis(50));
        poll_fn(|cx| {
            polls += 1;
            if source.poll_writable(cx).is_ready() {
                // More may fit once the peer's kernel has taken what it could.
                written += fill(&source);
            }
            let _ = source.poll_writable(cx);
            Timer::poll(&mut pause, cx)
        })
        .await;
        assert!(polls < 50, "woken {polls} times");
        let reader = std::thread::spawn(move || {
            theirs.read_exact(&mut vec![0; written]).expect("read");
            theirs
        });
        poll_fn(|cx| source.poll_writable(cx)).await;
        reader.join().expect("joined");
    });
}

#[rstest]
#[case::behind_its_end(true)]
#[case::out_of_the_blue(false)]
fn a_reset_is_seen(#[case] ends_before: bool) {
    with_reactor(move |reactor| async move {
        let (source, theirs) = tcp_pair(&reactor);
        if ends_before {
            theirs.shutdown(std::net::Shutdown::Write).expect("half closed");
            assert!(matches!(received(&source).await, Ok(Read::End)));
            poll_fn(|cx| {
                assert!(source.poll_failed(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            turn(&reactor).await;
        }
        SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(theirs);
        poll_fn(|cx| source.poll_failed(cx)).await;
    });
}

/// Sources that go at any moment, with bytes on their way to them, beside others whose bytes must
/// be all theirs; descriptors and names are used again at once.
#[test]
fn what_is_dropped_while_under_way_reaches_nobody_else() {
    const ROUNDS: u64 = 5_000;
    with_reactor(|reactor| async move {
        let mut rng = Rng::new(42);
        let mut staying: Vec<(Source, UnixStream, u64, Vec<u8>)> = Vec::new();
        for round in 0..ROUNDS {
            let (source, mut theirs) = pair(&reactor);
            if rng.below(2) == 0 {
                turn(&reactor).await;
            }
            let sent = pattern(round, 1 + rng.below(9_000) as usize);
            theirs.write_all(&sent).expect("written");
            match rng.below(4) {
                // At once, or with the bytes received and unread, or with some of them read.
                0 => drop(source),
                1 => {
                    turn(&reactor).await;
                    drop(source);
                }
                2 => {
                    if let Ok(Read::Some { bytes, .. }) = received(&source).await {
                        drop(source);
                        assert!(*bytes == sent[..bytes.len()], "round {round}: bytes of others");
                    }
                }
                _ => staying.push((source, theirs, round, Vec::new())),
            }
            if staying.len() == 50 {
                let place = rng.below(50) as usize;
                let (source, theirs, number, mut got) = staying.swap_remove(place);
                drop(theirs);
                got.extend(all_of(&source).await);
                assert!(pattern(number, got.len()) == got, "round {round}: bytes of others");
                assert!(!got.is_empty());
            }
        }
        let lines = reactor.lines.borrow().slots.len();
        assert!(lines < 200, "{lines} names for 51 sources: some are never free again");
    });
}

#[test]
fn descriptors_of_dropped_sources_are_closed_before_the_ring_waits() {
    with_reactor(|reactor| async move {
        let (source, mut theirs) = pair(&reactor);
        turn(&reactor).await;
        drop(source);
        let mut ends = reactor.watch(theirs.try_clone().expect("a descriptor").into());
        ends.receive();
        assert!(matches!(received(&ends).await, Ok(Read::End)));
        ends = pair(&reactor).0;
        drop(ends);
        assert_eq!(theirs.read(&mut [0]).expect("the end"), 0);
    });
}

#[test]
fn a_timer_ends_a_wait() {
    with_reactor(|reactor| async move {
        let before = reactor.clock.now();
        reactor.after(Duration::from_millis(5)).await;
        assert!(reactor.clock.now().since(before) >= Duration::from_millis(5));
    });
}

#[test]
fn tasks_end_with_the_reactor() {
    struct Told(Rc<Cell<bool>>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    on_executor(|reactor| async move {
        let dropped = Rc::new(Cell::new(false));
        let told = Told(dropped.clone());
        let waker = Rc::new(RefCell::new(None::<Waker>));
        let kept = waker.clone();
        let waits = poll_fn(move |cx| {
            let _ = &told;
            kept.replace(Some(cx.waker().clone()));
            Poll::Pending
        });
        glommio::spawn_local(reactor.task(Box::pin(waits))).detach();
        assert!(!dropped.get());
        reactor.end(|| waker.take().expect("it waits").wake()).await;
        assert!(dropped.get());
    });
}
