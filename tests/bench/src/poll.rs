//! Level-triggered epoll with nanosecond time-outs, so that events of many streams can be written
//! each at its own moment instead of in the clumps that millisecond time-outs would make.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;

/// What happened to one registered socket.
#[derive(Clone, Copy)]
pub struct Ready {
    /// The number it was registered under.
    pub token: usize,
    /// There is something to read, be it an end or an error.
    pub read: bool,
    /// There is room to write.
    pub write: bool,
}

/// Which directions a socket waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    ReadWrite,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::ReadWrite => EventFlags::IN | EventFlags::OUT,
        }
    }
}

/// One epoll instance and the events it last reported.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // The default slack of 50 us would gather neighbouring deadlines into one wake-up.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(512) })
    }

    pub fn add(&self, socket: impl AsFd, token: usize) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token as u64), EventFlags::IN)?)
    }

    pub fn modify(&self, socket: impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(token as u64);
        Ok(epoll::modify(&self.epoll, socket, data, interest.flags())?)
    }

    /// Waits for readiness or for `timeout`; `None` waits for ever. Appends to `ready`.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as _,
            tv_nsec: timeout.subsec_nanos() as _,
        });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let ended = EventFlags::IN | EventFlags::HUP | EventFlags::ERR;
        ready.extend(self.events.drain(..).map(|event| {
            // The struct is packed: fields are copied out before use.
            let (flags, data) = (event.flags, event.data);
            Ready {
                token: data.u64() as usize,
                read: flags.intersects(ended),
                write: flags.contains(EventFlags::OUT),
            }
        }));
        Ok(())
    }
}
