//! Words: by which counts are told apart. Few, and none of them is a client's.

/// An enumeration whose members have a word each and are counted in an array.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$of:meta])* $member:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$of])* $member,)+
        }

        impl $name {
            /// All of them: the place of each is its number.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$member),+];

            /// One word, for labels and names of fields.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$member => $word,)+
                }
            }
        }
    };
}

words! {
    /// How a request ended that a backend had.
    Ending {
        /// Switched to a websocket.
        Informed = "1xx",
        /// A success.
        Succeeded = "2xx",
        /// A redirect.
        Redirected = "3xx",
        /// The client's fault.
        ClientError = "4xx",
        /// The backend's fault.
        ServerError = "5xx",
        /// A status beyond these.
        Odd = "other",
        /// The client left before the end of the answer.
        ClientGone = "client_gone",
        /// The answer had begun and ended as broken.
        Broken = "broken",
        /// The answer had begun and nothing more came, or the process ended.
        TimedOut = "timeout",
    }
}

words! {
    /// Why an attempt at a backend failed before anything of an answer reached the client.
    Fault {
        /// No connection could be made.
        Connect = "connect",
        /// There was no descriptor, port or memory for one here: no backend's fault.
        NoSocket = "no_socket",
        /// An idle connection had died, which says nothing of the backend.
        Stale = "stale",
        /// The connection ended before a byte of the answer.
        Lost = "lost",
        /// The answer ended within its beginning.
        Cut = "cut",
        /// The answer was not HTTP/1.1, or ambiguous.
        Nonsense = "nonsense",
        /// It answered 500 or 503.
        Status = "status",
        /// The first event of the answer was an error of the server's.
        ErrorEvent = "error_event",
        /// It did not know the model that it had listed.
        Unlisted = "unlisted",
        /// It does not keep the response asked for; another may.
        Elsewhere = "elsewhere",
        /// It sent nothing for the whole HTTP timeout.
        Timeout = "timeout",
    }
}

words! {
    /// Why the proxy refused a request in its own words.
    Refused {
        /// No backend lists the model, and none was there to judge the request.
        UnknownModel = "unknown_model",
        /// No backend has the address that the request names.
        UnknownBackend = "unknown_backend",
        /// The request did not name the one backend that it must.
        Ambiguous = "ambiguous",
        /// Backends of the model are known, and none is up.
        ModelDown = "model_down",
        /// All backends of the model that are up are to get no new requests.
        Drained = "drained",
        /// Not enough is known yet, or no backend at all is up.
        Starting = "starting",
        /// There was no room for it here.
        Busy = "busy",
        /// Who may keep the response asked for could not be asked.
        Unasked = "unasked",
        /// The backends tried gave no answer.
        NoAnswer = "no_answer",
        /// The backend sent nothing for the whole HTTP timeout.
        Timeout = "timeout",
        /// It could not be read.
        BadRequest = "bad_request",
        /// A part of it was larger than its limit.
        TooLarge = "too_large",
        /// The client did not send the whole of it in time.
        SlowClient = "slow_client",
        /// A page of another origin would have had a browser give an operator's order.
        Foreign = "foreign",
    }
}

words! {
    /// What the proxy answered a request with that no single backend answers.
    Own {
        /// What it knows itself: health, lists of models, versions, and which methods a route has.
        Answer = "answer",
        /// How it is itself.
        Status = "status",
        /// Answers of several backends, merged.
        Merged = "merged",
    }
}

impl Ending {
    /// An answer with this status passed whole.
    pub const fn of_status(status: u16) -> Self {
        match status / 100 {
            1 => Self::Informed,
            2 => Self::Succeeded,
            3 => Self::Redirected,
            4 => Self::ClientError,
            5 => Self::ServerError,
            _ => Self::Odd,
        }
    }
}

impl Fault {
    /// Those that count against a backend, or at least happened with one.
    pub const OF_BACKENDS: [Self; 9] = [
        Self::Connect,
        Self::Stale,
        Self::Lost,
        Self::Cut,
        Self::Nonsense,
        Self::Status,
        Self::ErrorEvent,
        Self::Unlisted,
        Self::Timeout,
    ];

    /// Whether it is a failure of the backend: idle connections die, and a search goes on.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::NoSocket | Self::Stale | Self::Elsewhere)
    }
}

impl Refused {
    /// Of a request that was refused with this status before its end was read.
    pub const fn unread(status: u16) -> Self {
        match status {
            403 => Self::Foreign,
            408 => Self::SlowClient,
            413 | 414 | 431 => Self::TooLarge,
            503 => Self::Busy,
            _ => Self::BadRequest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn each_word_is_said_once_and_in_its_place() {
        let endings = Ending::ALL.map(|one| (one as usize, one.as_str()));
        let faults = Fault::ALL.map(|one| (one as usize, one.as_str()));
        let refused = Refused::ALL.map(|one| (one as usize, one.as_str()));
        for words in [&endings[..], &faults, &refused] {
            assert!(words.iter().enumerate().all(|(at, (place, _))| at == *place));
            let different: BTreeSet<_> = words.iter().map(|(_, word)| word).collect();
            assert_eq!(different.len(), words.len());
        }
    }

    #[test]
    fn statuses_have_classes() {
        let classes = [99, 101, 204, 304, 404, 599, 600, 999].map(Ending::of_status);
        let words = classes.map(Ending::as_str);
        assert_eq!(words, ["other", "1xx", "2xx", "3xx", "4xx", "5xx", "other", "other"]);
    }
}
