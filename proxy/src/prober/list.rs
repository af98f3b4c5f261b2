//! List: what each upstream stands for now, and who looks that up.
//!
//! Owns the list of upstreams as the engine knows it, and tells the engine whenever it, or what it
//! stands for, changes. How a name is looked up is told by [`resolve`](super::resolve).

use super::resolve::follow;
use crate::shared::SharedEngine;
use crate::upstream::Place;
use crate::upstreams::Listed;
use crate::values::Host;
use event_listener::{Event, EventListener};
use smol::{LocalExecutor, Task, Timer};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use vllm_proxy_core::engine::Input;
use vllm_proxy_core::fleet::{Address, BackendSpec, Upstream};

/// How long a new list waits for the first answers. Requests wait for the first of all lists, but
/// not for long; and where a later one only names the same backends otherwise, they are not to
/// leave and come back.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// An upstream for as long as it stands in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemberId(u64);

struct Member {
    id: MemberId,
    listed: Listed,
    /// The last answer.
    known: Vec<Address>,
    /// Whether its name was looked up, with whatever success.
    answered: bool,
    /// Ends with it.
    _follower: Option<Task<()>>,
}

#[derive(Default)]
struct State {
    members: Vec<Member>,
    next: u64,
    /// The upstreams in the order in which the engine has numbered them.
    told: Vec<MemberId>,
    /// Whether the engine has to be told of upstreams, too.
    renumbered: bool,
    /// Lists so far; those that wait for their first answers have to know which they are.
    lists: u64,
    waiting: bool,
}

pub(super) struct List {
    executor: Rc<LocalExecutor<'static>>,
    shared: Arc<SharedEngine>,
    interval: Duration,
    /// All names are to be looked up at once.
    at_once: Event,
    state: RefCell<State>,
}

impl List {
    /// The list that the engine was configured for.
    pub(super) fn start(
        executor: &Rc<LocalExecutor<'static>>,
        shared: &Arc<SharedEngine>,
        interval: Duration,
        upstreams: &[Listed],
    ) -> Rc<Self> {
        let list = Rc::new(Self {
            executor: Rc::clone(executor),
            shared: Arc::clone(shared),
            interval,
            at_once: Event::new(),
            state: RefCell::default(),
        });
        list.take(upstreams);
        {
            let mut state = list.state.borrow_mut();
            state.told = state.members.iter().map(|member| member.id).collect();
            state.renumbered = false;
        }
        list.wait();
        list
    }

    /// The operator names other upstreams.
    pub(super) fn replace(self: &Rc<Self>, upstreams: &[Listed]) {
        self.take(upstreams);
        self.wait();
    }

    /// Has all names looked up at once.
    pub(super) fn look_up_now(&self) {
        self.at_once.notify(usize::MAX);
    }

    /// Hears when that is wanted from now on.
    pub(super) fn at_once(&self) -> EventListener {
        self.at_once.listen()
    }

    pub(super) const fn interval(&self) -> Duration {
        self.interval
    }

    /// Looks up who is new, and keeps what is known of who stays.
    fn take(self: &Rc<Self>, upstreams: &[Listed]) {
        let mut state = self.state.borrow_mut();
        let mut former = std::mem::take(&mut state.members);
        for listed in upstreams {
            let stays = former.iter().position(|member| member.listed.upstream == listed.upstream);
            let member = match stays {
                Some(at) => Member { listed: listed.clone(), ..former.swap_remove(at) },
                None => {
                    let id = MemberId(state.next);
                    state.next += 1;
                    self.joined(id, listed.clone())
                }
            };
            state.members.push(member);
        }
        state.renumbered = true;
        state.lists += 1;
    }

    fn joined(self: &Rc<Self>, id: MemberId, listed: Listed) -> Member {
        let fixed = match &listed.upstream.place {
            Place::Unix(path) => Ok(Address::Unix(path.clone())),
            Place::Tcp { host: Host::Ip(ip), port } => {
                Ok(Address::Tcp((ip.to_canonical(), *port).into()))
            }
            Place::Tcp { host: Host::Name(name), port } => Err((name.clone(), *port)),
        };
        let (known, follower) = match fixed {
            Ok(address) => (vec![address], None),
            Err((name, port)) => {
                let upstream = listed.upstream.to_string();
                let follow = follow(Rc::clone(self), id, upstream, name, port);
                (Vec::new(), Some(self.executor.spawn(follow)))
            }
        };
        Member { id, listed, known, answered: follower.is_none(), _follower: follower }
    }

    /// Tells the engine of a new list when all have answered once, or a while has passed.
    fn wait(self: &Rc<Self>) {
        let number = {
            let mut state = self.state.borrow_mut();
            state.waiting = !state.all_answered();
            if !state.waiting {
                drop(state);
                self.tell();
                return;
            }
            state.lists
        };
        let list = Rc::clone(self);
        let end = async move {
            Timer::after(FIRST_WAIT).await;
            let due = {
                let mut state = list.state.borrow_mut();
                let due = state.waiting && state.lists == number;
                state.waiting &= !due;
                due
            };
            if due {
                list.tell();
            }
        };
        self.executor.spawn(end).detach();
    }

    /// A name was looked up; `None` if that failed, which changes nothing. Says whether it stands
    /// for something else now.
    pub(super) fn answered(&self, id: MemberId, answer: Option<Vec<SocketAddr>>) -> bool {
        let (changed, due) = {
            let mut state = self.state.borrow_mut();
            let Some(member) = state.members.iter_mut().find(|member| member.id == id) else {
                return false;
            };
            member.answered = true;
            let answer = answer.map(|addresses| addresses.into_iter().map(Address::Tcp).collect());
            let changed = answer.filter(|addresses| *addresses != member.known);
            let is_changed = changed.is_some();
            if let Some(addresses) = changed {
                member.known = addresses;
            }
            let first = state.waiting && state.all_answered();
            let due = first || (is_changed && !state.waiting);
            state.waiting &= !first;
            (is_changed, due)
        };
        if due {
            self.tell();
        }
        changed
    }

    fn tell(&self) {
        let mut state = self.state.borrow_mut();
        let backends = state.specs();
        if !std::mem::take(&mut state.renumbered) {
            self.shared.tell(Input::Discovered(&backends));
            return;
        }
        let upstreams = state.upstreams();
        state.told = state.members.iter().map(|member| member.id).collect();
        self.shared.tell(Input::Upstreams { upstreams: &upstreams, backends: &backends });
    }
}

impl State {
    fn all_answered(&self) -> bool {
        self.members.iter().all(|member| member.answered)
    }

    fn upstreams(&self) -> Vec<Upstream> {
        let upstream = |member: &Member| {
            let was = self.told.iter().position(|told| *told == member.id);
            Upstream {
                was: was.and_then(|was| u16::try_from(was).ok()),
                forwards_unknown: member.listed.forward_unknown,
            }
        };
        self.members.iter().map(upstream).collect()
    }

    /// Backends in the order of their upstreams. An address of two upstreams stands there twice,
    /// since the engine wants to know both.
    fn specs(&self) -> Vec<BackendSpec> {
        let spec = |number: u16, listed: &Listed, address: &Address| BackendSpec {
            upstream: number,
            address: address.clone(),
            authority: listed.upstream.authority.clone(),
            prefix: listed.upstream.prefix.clone(),
            labels: listed.labels,
        };
        (0_u16..)
            .zip(&self.members)
            .flat_map(|(number, member)| {
                member.known.iter().map(move |address| spec(number, &member.listed, address))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstreams::file::parse;

    fn member(id: u64, line: &str, known: Vec<Address>) -> Member {
        let listed = parse(line.as_bytes()).unwrap().remove(0);
        Member { id: MemberId(id), listed, known, answered: true, _follower: None }
    }

    #[test]
    fn backends_stand_in_the_order_of_upstreams() {
        let tcp = |address: &str| Address::Tcp(address.parse().unwrap());
        let members = vec![
            member(0, "http://b:1", vec![tcp("10.0.0.2:1")]),
            member(1, "unix:///s drain", vec![Address::Unix("/s".to_owned())]),
            member(2, "http://a:1 weight=2", vec![tcp("10.0.0.1:1"), tcp("10.0.0.2:1")]),
        ];
        let specs = State { members, ..State::default() }.specs();
        let got: Vec<_> = specs
            .iter()
            .map(|spec| {
                let labels = (spec.labels.weight, spec.labels.drain);
                (spec.upstream, spec.address.to_string(), spec.authority.as_str(), labels)
            })
            .collect();
        assert_eq!(
            got,
            [
                (0, "10.0.0.2:1".to_owned(), "b:1", (100, false)),
                (1, "unix:/s".to_owned(), "localhost", (100, true)),
                (2, "10.0.0.1:1".to_owned(), "a:1", (200, false)),
                (2, "10.0.0.2:1".to_owned(), "a:1", (200, false)),
            ]
        );
    }

    #[test]
    fn upstreams_say_which_number_they_had() {
        let members = vec![
            member(7, "http://c forward-unknown", Vec::new()),
            member(3, "http://a", Vec::new()),
            member(9, "http://new", Vec::new()),
        ];
        let told = [3, 5, 7].map(MemberId).to_vec();
        let upstreams = State { members, told, ..State::default() }.upstreams();
        let upstream = |was, forwards_unknown| Upstream { was, forwards_unknown };
        let expected = [upstream(Some(2), true), upstream(Some(0), false), upstream(None, false)];
        assert_eq!(upstreams, expected);
    }
}
