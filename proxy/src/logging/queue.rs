//! Queue: between those who log and standard output, which may be slow, stuck or closed.
//!
//! Invariant: nobody who pushes ever waits for a write. What finds no room is dropped and counted,
//! as is what could not be written.

use std::io::{self, ErrorKind, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What waits to be written, in bytes: thousands of entries, and nothing beside what a proxy
/// otherwise holds. As much again may be in the writer's hands.
const BYTES_MAX: usize = 1 << 20;
/// How long to wait before trying again to write to what would block.
const RETRY: Duration = Duration::from_millis(20);

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    /// Whether the writer has a batch in hand.
    writing: bool,
    /// Entries dropped, and not reported yet.
    dropped: u64,
    /// All entries that were ever dropped.
    dropped_ever: u64,
}

/// Entries, one after the other, and where each ends.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Queue {
    pub(super) fn push(&self, entry: &[u8]) {
        let mut state = self.lock();
        let held = state.waiting.bytes.len();
        if held != 0 && held + entry.len() > BYTES_MAX {
            state.drop_more(1);
            return;
        }
        state.waiting.bytes.extend_from_slice(entry);
        state.waiting.ends.push(held + entry.len());
        drop(state);
        self.filled.notify_one();
    }

    /// Waits until all is written, for at most so long.
    pub(super) fn flush(&self, limit: Duration) {
        let pending = |state: &mut State| state.writing || !state.waiting.bytes.is_empty();
        let _ = self.written.wait_timeout_while(self.lock(), limit, pending);
    }

    /// How many entries were dropped since the process began.
    pub(super) fn dropped_ever(&self) -> u64 {
        self.lock().dropped_ever
    }

    /// Writes for ever. `report` words the entry that says how many were dropped.
    pub(super) fn write_to(&self, out: &mut impl Write, report: impl Fn(u64) -> Vec<u8>) {
        let mut batch = Batch::default();
        let mut torn = false;
        loop {
            self.next(&mut batch);
            if torn {
                // The rest of an entry is missing: what follows starts on a line of its own.
                torn = !matches!(write_all(out, b"\n"), (_, Ok(())));
            }
            let (mut count, mut done) = write_all(out, &batch.bytes);
            let lost = batch.lost_after(count);
            let mut unreported = 0;
            torn |= batch.is_torn_at(count);
            if done.is_ok() {
                let dropped = std::mem::take(&mut self.lock().dropped);
                if dropped != 0 {
                    let entry = report(dropped);
                    (count, done) = write_all(out, &entry);
                    if done.is_err() {
                        unreported = dropped;
                        torn |= count != 0;
                    }
                }
            }
            if lost != 0 || unreported != 0 {
                let mut state = self.lock();
                state.drop_more(lost);
                state.dropped = state.dropped.saturating_add(unreported);
            }
        }
    }

    /// Waits for entries and takes all there are.
    fn next(&self, batch: &mut Batch) {
        batch.clear();
        let mut state = self.lock();
        state.writing = false;
        if state.waiting.bytes.is_empty() {
            self.written.notify_all();
            let empty = |state: &mut State| state.waiting.bytes.is_empty();
            state = self.filled.wait_while(state, empty).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.waiting, batch);
        state.writing = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_more(&mut self, entries: u64) {
        self.dropped = self.dropped.saturating_add(entries);
        self.dropped_ever = self.dropped_ever.saturating_add(entries);
    }
}

impl Batch {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// How many entries are not whole within the first `written` bytes.
    fn lost_after(&self, written: usize) -> u64 {
        self.ends.iter().filter(|end| **end > written).count() as u64
    }

    fn is_torn_at(&self, written: usize) -> bool {
        written != 0 && !self.ends.contains(&written)
    }
}

/// Writes all of it, and says how much was written at the first error. Whoever shares standard
/// output may have made it non-blocking; to be full is no error then.
fn write_all(out: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::mpsc::{self, Receiver, Sender};

    /// An output that does as told, once per write, and hands on what was written.
    struct Told {
        orders: Receiver<Result<usize, ErrorKind>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without an order it is stuck.
            let Ok(order) = self.orders.recv() else {
                loop {
                    thread::park();
                }
            };
            let count = order?.min(bytes.len());
            let _ = self.written.send(bytes[..count].to_vec());
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const ALL: Result<usize, ErrorKind> = Ok(usize::MAX);

    type Order = Sender<Result<usize, ErrorKind>>;

    fn started() -> (Arc<Queue>, Order, Receiver<Vec<u8>>) {
        let queue = Arc::new(Queue::default());
        let (order, orders) = mpsc::channel();
        let (written, output) = mpsc::channel();
        let writer = Arc::clone(&queue);
        thread::spawn(move || {
            let report = |dropped| format!("dropped {dropped}\n").into_bytes();
            writer.write_to(&mut Told { orders, written }, report);
        });
        (queue, order, output)
    }

    fn next(output: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(output.recv_timeout(Duration::from_secs(120)).unwrap()).unwrap()
    }

    #[test]
    fn entries_are_written_in_their_order() {
        let (queue, order, output) = started();
        queue.push(b"a\n");
        for _ in 0..9 {
            order.send(Ok(1)).unwrap();
        }
        assert_eq!((next(&output).as_str(), next(&output).as_str()), ("a", "\n"));
        queue.push(b"b\n");
        assert_eq!((next(&output).as_str(), next(&output).as_str()), ("b", "\n"));
        queue.flush(Duration::from_secs(120));
    }

    #[test]
    fn a_stuck_output_holds_nobody_up_and_drops_are_told() {
        let (queue, order, output) = started();
        queue.push(b"first\n");
        // The writer holds that now, or takes some of these along: at most twice the limit fits.
        let entry = [b'x'; 1024];
        for _ in 0..4 * BYTES_MAX / entry.len() {
            queue.push(&entry);
        }
        assert!(queue.lock().waiting.bytes.len() <= BYTES_MAX);
        assert!(queue.lock().dropped > 0);
        queue.flush(Duration::from_millis(10));
        let dropped = queue.lock().dropped;
        for _ in 0..3 {
            order.send(ALL).unwrap();
        }
        assert!(next(&output).starts_with("first\n"));
        assert_eq!(next(&output), format!("dropped {dropped}\n"));
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let (queue, order, output) = started();
        queue.push(b"a\n");
        order.send(Err(ErrorKind::BrokenPipe)).unwrap();
        while queue.lock().dropped != 1 {
            thread::yield_now();
        }
        queue.push(b"b\n");
        order.send(ALL).unwrap();
        order.send(ALL).unwrap();
        assert_eq!((next(&output).as_str(), next(&output).as_str()), ("b\n", "dropped 1\n"));
        assert_eq!(queue.dropped_ever(), 1, "what was told stays counted");
    }

    #[test]
    fn an_entry_after_half_a_one_has_its_own_line() {
        let (queue, order, output) = started();
        queue.push(b"a\n");
        order.send(Ok(1)).unwrap();
        order.send(Err(ErrorKind::StorageFull)).unwrap();
        while queue.lock().dropped != 1 {
            thread::yield_now();
        }
        queue.push(b"b\n");
        for _ in 0..3 {
            order.send(ALL).unwrap();
        }
        let written: VecDeque<_> = (0..4).map(|_| next(&output)).collect();
        assert_eq!(written, ["a", "\n", "b\n", "dropped 1\n"]);
    }

    #[test]
    fn an_output_that_would_block_is_tried_again() {
        let (queue, order, output) = started();
        queue.push(b"a\n");
        for result in [Err(ErrorKind::WouldBlock), Err(ErrorKind::Interrupted), ALL] {
            order.send(result).unwrap();
        }
        assert_eq!(next(&output), "a\n");
    }
}
