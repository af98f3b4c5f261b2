//! Watches the file of upstreams, and hears when the operator wants all looked at again.
//!
//! Knows when the file is read and what is told of that. What stands in it is told by
//! [`file`](mod@file), what becomes of a new list by [`List`].

use super::list::List;
use crate::upstreams::{Listed, Upstreams, file, shown};
use smol::Timer;
use smol::channel::{self, Receiver};
use smol::future::FutureExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use std::{io, thread};

/// How often the file is read. It is small, and of what metadata says nothing can be believed: an
/// editor may write twice within one tick of the file system's clock.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a file that changed must stay as it is: who writes it in place has it empty at first.
const STILL: Duration = Duration::from_millis(100);

/// Sees to it that the list is what operators say now. Never ends.
pub(super) async fn watch(list: Rc<List>, mut upstreams: Upstreams, asked: Receiver<()>) {
    loop {
        let is_asked = async {
            match asked.recv().await {
                Ok(()) => true,
                // Nobody is left who could ask.
                Err(_) => smol::future::pending().await,
            }
        };
        let time = async {
            match upstreams.file() {
                Some(_) => drop(Timer::after(AGAIN).await),
                None => smol::future::pending().await,
            }
            false
        };
        let is_asked = is_asked.or(time).await;
        if is_asked {
            log::info!("looking at upstreams again");
        }
        if let Some(content) = changed(&upstreams).await
            && take(&mut upstreams, content)
        {
            list.replace(upstreams.list());
        }
        if is_asked {
            list.look_up_now();
        }
    }
}

/// What the file holds, if that is something else than before and stays so.
async fn changed(upstreams: &Upstreams) -> Option<file::Content> {
    let path = upstreams.file()?.to_owned();
    let mut content = read(&path).await;
    while content != *upstreams.content() {
        Timer::after(STILL).await;
        let again = read(&path).await;
        if again == content {
            break;
        }
        content = again;
    }
    (content != *upstreams.content()).then_some(content)
}

/// Reads the file on a thread of its own: those of the pool may all wait for name servers, of
/// upstreams that are to leave the list by what the file says now.
async fn read(path: &Path) -> file::Content {
    let (tell, told) = channel::bounded(1);
    let path = path.to_owned();
    let read = move || drop(tell.try_send(file::read(&path)));
    let content = match thread::Builder::new().name("upstreams".to_owned()).spawn(read) {
        Ok(_) => told.recv().await.map_err(|_| io::Error::other("the thread that reads it ended")),
        Err(error) => Err(error),
    };
    content.unwrap_or_else(|error| Err(file::Unreadable::from(error)))
}

/// Takes what the file holds now, and says whether the list is another one.
fn take(upstreams: &mut Upstreams, content: file::Content) -> bool {
    let path = upstreams.file().map(|path| path.display().to_string()).unwrap_or_default();
    let file = path.as_str();
    let bytes = match &content {
        Ok(bytes) => bytes,
        Err(error) => {
            log::error!(file, error:%; "upstreams file cannot be read, the list stays");
            upstreams.keep(content);
            return false;
        }
    };
    let lines = match file::parse(bytes) {
        Ok(lines) => lines,
        Err(error) => {
            log::error!(file, line = error.line, error:%; "upstreams file is broken, the list stays");
            upstreams.keep(content);
            return false;
        }
    };
    let former = upstreams.list().to_vec();
    upstreams.replace(content, lines);
    let list = upstreams.list();
    if *list == *former {
        log::info!(file; "upstreams file read, the list is the same");
        return false;
    }
    let (added, removed) = (without(list, &former), without(&former, list));
    let relabelled = list
        .iter()
        .filter(|one| former.iter().any(|known| known.upstream == one.upstream && known != *one));
    log::info!(
        file,
        upstreams = list.len(),
        added = added.as_str(),
        removed = removed.as_str(),
        relabelled = shown(relabelled.map(|one| &one.upstream)).as_str();
        "upstreams changed"
    );
    if list.is_empty() {
        log::warn!(file; "no upstream is left");
    }
    true
}

/// Those of the first list that are not in the second.
fn without(these: &[Listed], others: &[Listed]) -> String {
    let known = |one: &&Listed| others.iter().any(|other| other.upstream == one.upstream);
    shown(these.iter().filter(|one| !known(one)).map(|one| &one.upstream))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex};

    /// As many as the pool has threads, and more.
    const LOOK_UPS: usize = 600;

    #[test]
    fn the_file_is_read_though_name_servers_are_silent() {
        let (answer, answered) = mpsc::channel::<()>();
        let answered = Arc::new(Mutex::new(answered));
        let look_up = |_| {
            let answered = Arc::clone(&answered);
            smol::unblock(move || drop(answered.lock().map(|answered| answered.recv())))
        };
        let look_ups: Vec<_> = (0..LOOK_UPS).map(look_up).collect();
        // So that it fails, rather than never ends.
        let late = async {
            Timer::after(Duration::from_secs(30)).await;
            Ok(Vec::new())
        };
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let content = smol::block_on(read(path).or(late));
        drop(answer);
        drop(look_ups);
        assert!(content.is_ok_and(|content| !content.is_empty()));
    }
}
