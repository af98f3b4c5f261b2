//! Transfers that are abandoned at every byte, by clients and by backends, in the midst of others:
//! nobody else gets or lacks a byte, and nothing stays behind.
//!
//! A runtime that owns its buffers while the kernel fills or sends them must not give one to
//! somebody else too early, nor send what was for another who had the same descriptor. Therefore
//! company goes on all the time, on the same two threads, and checks each byte both ways.
//!
//! `VLLM_PXY_TEST_ROUNDS=200 cargo test -p vllm-proxy --test end_to_end abandoned` goes through all
//! of it so many times, instead of once: some 8,000 abandoned transfers a round and runtime.

use crate::backend::Backend;
use crate::keyed::{Order, Seen, Shape, Stop, obeying};
use crate::proxy::{Proxy, Runtime, eventually, on_every_runtime};
use crate::wire::{End, PATIENCE, Wire, get, header, status};
use socket2::{Domain, Socket, Type};
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many leave at once, for each other's company.
const LEAVERS: usize = 4;

/// More than a read, a write or a buffer of the proxy takes at once.
const LARGE: usize = 200 << 10;

/// Who takes that long to read what waits for it counts as gone.
const SLOWEST: Duration = Duration::from_secs(60);

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Close,
    Reset,
    HalfClose,
}

impl Leave {
    const ALL: [Self; 3] = [Self::Close, Self::Reset, Self::HalfClose];

    /// Leaves; who only half does so is told nothing wrong, nor for long.
    fn take(self, mut client: Wire, orders: &[Order], read: usize) {
        match self {
            Self::Close => drop(client),
            Self::Reset => client.reset(),
            Self::HalfClose => {
                client.half_close();
                let (rest, end) = client.rest();
                assert_ne!(end, End::Silent, "{orders:?}");
                let due: Vec<u8> = orders.iter().flat_map(Order::answer).collect();
                let rest_due = due.get(read..).unwrap_or_default();
                // What is no whole request may be answered as such.
                let is_error = || read == 0 && status(&rest) / 100 == 4;
                assert!(rest_due.starts_with(&rest) || is_error(), "{orders:?}: {rest:?}");
            }
        }
    }
}

/// How often to do it all.
fn rounds() -> usize {
    let rounds = std::env::var("VLLM_PXY_TEST_ROUNDS").ok();
    rounds.map_or(1, |rounds| rounds.parse().expect("VLLM_PXY_TEST_ROUNDS is a number"))
}

/// A connection that takes few bytes at a time, so that much waits within the proxy.
fn narrow(address: SocketAddr) -> Wire {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("descriptors are left");
    // Before it connects: the window that it offers follows from it.
    socket.set_recv_buffer_size(4 << 10).expect("Linux takes any");
    socket.connect(&address.into()).expect("the proxy accepts");
    Wire::new(socket.into())
}

/// All kinds of requests, one after the other, each read to its end and checked.
fn talk(client: &mut Wire) -> bool {
    for shape in Shape::ALL {
        for (up, down) in [(40, 60), (LARGE, 2_000), (300, LARGE)] {
            for up_in_chunks in [false, true] {
                let order = Order { up_in_chunks, ..Order::sized(shape, up, down) };
                client.send(order.request());
                order.check_answer(client);
            }
        }
    }
    true
}

/// Several requests in one write.
fn talk_ahead(client: &mut Wire) -> bool {
    let orders: [_; 6] =
        std::array::from_fn(|at| Order::sized(Shape::ALL[at % 3], 100 * at, 1_000 * at));
    client.send(orders.iter().flat_map(Order::request).collect::<Vec<_>>());
    orders.iter().for_each(|order| order.check_answer(client));
    true
}

/// An answer that is read in small pieces. On a machine that is busy this may be too slow.
fn read_slowly(client: &mut Wire) -> bool {
    for shape in Shape::ALL {
        let order = Order::sized(shape, 100, LARGE);
        let start = Instant::now();
        client.send(order.request());
        let mut answer = vec![0; order.answer().len()];
        for piece in answer.chunks_mut(1_500) {
            if let Err(error) = client.stream().read_exact(piece) {
                let took = start.elapsed();
                assert!(took >= SLOWEST, "the answer ended after {took:?}: {error}");
                return false;
            }
        }
        order.check_start(&answer);
    }
    true
}

/// Who stays: how each connects, and what it does again and again, for as long as it can.
const COMPANY: [Member; 3] =
    [(Wire::connect, talk), (Wire::connect, talk_ahead), (narrow, read_slowly)];

type Member = (fn(SocketAddr) -> Wire, fn(&mut Wire) -> bool);

/// Does all these in the midst of company, and looks what has stayed behind.
fn amid_company<T: Copy + Send + Sync>(
    runtime: Runtime,
    tasks: &[T],
    act: impl Fn(&Proxy, &Seen, T) + Sync,
) {
    let seen = Arc::new(Seen::default());
    let backends = ["m", "frail"].map(|model| obeying(model, &seen));
    let proxy = Proxy::start(runtime, &[&backends[0], &backends[1]]);
    let before = settled(|| descriptors(&proxy, &backends));
    let start = Instant::now();
    let (over, next, talks) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let total = tasks.len() * rounds();
    thread::scope(|scope| {
        for (connect, go_on) in COMPANY.into_iter().cycle().take(6) {
            let (proxy, over, talks) = (&proxy, &over, &talks);
            scope.spawn(move || {
                let mut client = connect(proxy.address);
                while !over.load(Ordering::SeqCst) {
                    if go_on(&mut client) {
                        talks.fetch_add(1, Ordering::SeqCst);
                    } else {
                        client = connect(proxy.address);
                    }
                }
            });
        }
        // Ends the company, be it by a failure.
        let _over = Finally(&over);
        eventually("there is company", || talks.load(Ordering::SeqCst) > 0);
        thread::scope(|scope| {
            for _ in 0..LEAVERS {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::SeqCst);
                        if at >= total || over.load(Ordering::SeqCst) {
                            return;
                        }
                        act(&proxy, &seen, tasks[at % tasks.len()]);
                    }
                });
            }
        });
    });
    let took = start.elapsed();
    seen.assert_right();
    eventually("nothing is in flight", || is_idle(&proxy.status()));
    for model in ["m", "frail"] {
        for shape in Shape::ALL {
            let mut client = proxy.client();
            let order = Order { model, ..Order::sized(shape, LARGE, LARGE) };
            client.send(order.request());
            order.check_answer(&mut client);
        }
    }
    // Idle connections that were closed are noticed by who looks for one, on either thread; what
    // is not among them stays.
    backends.iter().for_each(Backend::hang_up);
    eventually("descriptors are given back", || {
        for model in ["m", "frail"] {
            let order = Order { model, ..Order::new(Shape::Unary) };
            assert_eq!(proxy.ask(&order.request()), 200);
        }
        descriptors(&proxy, &backends) <= before
    });
    println!(
        "{total} abandoned in {took:?}, {} talks beside them, {} whole requests came",
        talks.load(Ordering::SeqCst),
        seen.whole()
    );
}

struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The proxy's descriptors without those of connections to backends that these know of.
fn descriptors(proxy: &Proxy, backends: &[Backend; 2]) -> usize {
    proxy.descriptors().saturating_sub(backends.iter().map(Backend::open).sum())
}

/// A count that has been the same for a while.
fn settled(count: impl Fn() -> usize) -> usize {
    let (mut last, mut times) = (count(), 0);
    eventually("it settles", || {
        let now = count();
        times = if now == last { times + 1 } else { 0 };
        last = now;
        times == 25
    });
    last
}

/// No request is in hand, and no body in memory.
fn is_idle(status: &serde_json::Value) -> bool {
    let backends = status["backends"].as_array().expect("there are backends");
    status["request_body_bytes"] == 0
        && backends.iter().all(|one| one["in_flight"] == 0 && one["queued_tokens"] == 0)
}

fn clients_leave_at_every_byte_that_they_send(runtime: Runtime) {
    let mut tasks = Vec::new();
    for (up_in_chunks, ahead) in [(false, 0), (true, 0), (false, 2)] {
        let order = Order { up_in_chunks, ..Order::new(Shape::Events) };
        // Keys grow by a digit meanwhile, at the end of the request or not at all.
        let length = order.request().len() + 2;
        for leave in Leave::ALL {
            tasks.extend((0..=length).map(|cut| (order, ahead, cut, leave)));
        }
    }
    amid_company(runtime, &tasks, |proxy, _, (order, ahead, cut, leave)| {
        let client = proxy.client();
        let mut orders: Vec<_> = (0..ahead).map(|_| Order::new(Shape::Unary)).collect();
        orders.push(order.again());
        let mut bytes: Vec<u8> = orders[..ahead].iter().flat_map(Order::request).collect();
        let request = orders[ahead].request();
        bytes.extend_from_slice(&request[..cut.min(request.len())]);
        client.send(bytes);
        if cut % 2 == 0 {
            // While this goes to and fro it is read; else the end comes along with the bytes.
            assert_eq!(proxy.ask(&get("/health")), 200);
        }
        leave.take(client, &orders, 0);
    });
}

fn clients_leave_at_every_byte_that_they_receive(runtime: Runtime) {
    let mut tasks = Vec::new();
    for shape in Shape::ALL {
        let order = Order::new(shape);
        for leave in Leave::ALL {
            let length = order.answer().len();
            tasks.extend((0..=length).map(|cut| (order, cut, leave)));
        }
    }
    amid_company(runtime, &tasks, |proxy, _, (order, cut, leave)| {
        let (client, order) = (proxy.client(), order.again());
        client.send(order.request());
        let mut came = vec![0; cut];
        client.stream().read_exact(&mut came).expect("so much is answered");
        order.check_start(&came);
        leave.take(client, &[order], cut);
    });
}

fn clients_leave_at_every_byte_that_the_backend_sends(runtime: Runtime) {
    let mut tasks = Vec::new();
    for shape in Shape::ALL {
        let order = Order::new(shape);
        for leave in Leave::ALL {
            tasks.extend((0..order.answer().len()).map(|cut| (order, cut, leave)));
        }
    }
    amid_company(runtime, &tasks, |proxy, seen, (order, cut, leave)| {
        let (client, order) = (proxy.client(), Order { stop: Stop::Hold(cut), ..order }.again());
        client.send(order.request());
        seen.await_stop(&order);
        leave.take(client, &[order], 0);
    });
}

fn clients_leave_in_the_midst_of_large_bodies(runtime: Runtime) {
    const PLACES: usize = 40;
    let mut tasks = Vec::new();
    for shape in Shape::ALL {
        for place in 0..PLACES {
            for leave in Leave::ALL {
                // Around the sizes of buffers, and in no step with them.
                let at = place * LARGE / PLACES + place * 7;
                tasks.push((shape, at, leave, false));
                tasks.push((shape, at, leave, true));
            }
        }
    }
    amid_company(runtime, &tasks, |proxy, _, (shape, at, leave, sends)| {
        let client = if sends { proxy.client() } else { narrow(proxy.address) };
        if sends {
            let in_chunks = shape != Shape::Unary;
            let order = Order { up_in_chunks: in_chunks, ..Order::sized(shape, LARGE, 60) };
            client.send(&order.request()[..at]);
            leave.take(client, &[order], 0);
        } else {
            let order = Order::sized(shape, 40, 2 * LARGE);
            client.send(order.request());
            let mut came = vec![0; at];
            client.stream().read_exact(&mut came).expect("so much is answered");
            order.check_start(&came);
            leave.take(client, &[order], at);
        }
    });
}

fn backends_leave_at_every_byte_of_their_answers(runtime: Runtime) {
    let mut tasks = Vec::new();
    for shape in Shape::ALL {
        let order = Order { model: "frail", ..Order::new(shape) };
        for cut in 0..order.answer().len() {
            tasks.push(Order { stop: Stop::Close(cut), ..order });
            tasks.push(Order { stop: Stop::Reset(cut), ..order });
        }
        for cut in (0..LARGE).step_by(LARGE / 40 + 7) {
            let order = Order { down: LARGE, ..order };
            tasks.push(Order { stop: Stop::Close(cut), ..order });
            tasks.push(Order { stop: Stop::Reset(cut), ..order });
        }
    }
    amid_company(runtime, &tasks, |proxy, seen, order| {
        let order = order.again();
        let (Stop::Close(cut) | Stop::Reset(cut)) = order.stop else { return };
        let mut client = proxy.client();
        let deadline = Instant::now() + PATIENCE;
        // So that every other time it leaves a connection that was used before.
        let warm = Order { stop: Stop::Never, ..order }.again();
        if cut % 2 == 0 {
            client.send(warm.request());
            expect(&mut client, &warm);
        }
        while !seen.has_stopped(&order) {
            assert!(Instant::now() < deadline, "it never came to the backend: {order:?}");
            client.send(order.request());
            if !expect(&mut client, &order) {
                return;
            }
        }
    });
}

/// Reads what a backend that may leave has answered, or what the proxy says instead. Whether the
/// connection can be used for another request.
fn expect(client: &mut Wire, order: &Order) -> bool {
    let first = match client.until(b"\r\n\r\n") {
        Ok(head) if matches!(status(&head), 502 | 503) => {
            let length = header(&head, "content-length").expect("it is framed");
            let body = client.exactly(length.parse().expect("it is a number"));
            assert!(body.expect("it is whole").starts_with(b"{\"error\""));
            return true;
        }
        Ok(head) => head,
        Err(end) => panic!("neither answer nor error: {end:?}, {order:?}"),
    };
    let due = order.answer();
    if order.stop == Stop::Never {
        let body = client.exactly(due.len() - first.len()).expect("it is whole");
        order.check_start(&[first, body].concat());
        return true;
    }
    let (rest, end) = client.rest();
    assert_ne!(end, End::Silent, "{order:?}");
    order.check_start(&[first, rest].concat());
    false
}

on_every_runtime![
    clients_leave_at_every_byte_that_they_send,
    clients_leave_at_every_byte_that_they_receive,
    clients_leave_at_every_byte_that_the_backend_sends,
    clients_leave_in_the_midst_of_large_bodies,
    backends_leave_at_every_byte_of_their_answers,
];
