//! What must hold in a world: after each event, and when all is over.
//!
//! A violation is a bug of ours, so it panics.

use crate::world::{Fate, Record, World};

/// After each event: nothing is lost, nothing is counted twice.
pub(crate) fn all(world: &World<'_>) {
    let sent = world.live.len();
    assert_eq!(world.in_hand(), sent, "proxies hold what they sent, and nothing else");
    assert!(world.live.keys().all(|id| world.open.contains(id)), "what is over is nowhere");
    let at_servers: usize = world.servers.iter().map(|server| server.vllm.in_flight()).sum();
    // A server ends the step in which a client left before it forgets the request.
    assert!(at_servers >= sent, "servers hold what they were sent");
    for server in &world.servers {
        let (users, held) = server.vllm.accounts();
        assert_eq!(users, held, "blocks are used by requests");
        assert!(server.alive || server.vllm.in_flight() == 0, "who is down holds nothing");
    }
    world.open.iter().for_each(|&id| record(world, &world.records[id]));
}

fn record(world: &World<'_>, record: &Record) {
    assert!(record.first.is_none_or(|first| record.at <= first && first <= world.now));
    assert!(record.end.is_none_or(|end| record.first.unwrap_or(record.at) <= end));
    assert!(record.usage.cached < record.usage.prompt.max(1), "the last token is computed");
    assert_eq!(record.fate == Fate::Open, record.end.is_none());
}

/// When the last request is over.
pub(crate) fn at_the_end(world: &World<'_>) {
    assert_eq!(
        (world.open.len(), world.live.len(), world.in_hand()),
        (0, 0, 0),
        "all requests ended"
    );
    world.records.iter().for_each(|one| record(world, one));
    for server in &world.servers {
        let (users, held) = server.vllm.accounts();
        assert_eq!(users, held, "blocks are used by requests");
        // One whose client left is in its last step.
        assert!(server.vllm.in_flight() > 0 || users == 0, "an idle server uses no block");
    }
}
