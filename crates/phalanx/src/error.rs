//! The crate's one error type.

use std::fmt;

use crate::process::ExitStatus;

/// What went wrong, in one sentence, with predicates to tell the cases apart.
///
/// The kind is private so that new cases break nobody: ask with the `is_*` methods.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<std::io::Error>,
    exit: Option<ExitStatus>,
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Timeout,
    Interrupted,
    Closed,
    Full,
    Empty,
    Foreign,
    Gone,
    ArenaFull,
    PeerDeath,
    Unsupported,
    Invalid,
    Broken,
    TooLarge,
    Corrupt,
    Panic,
    Os,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Timeout,
        Self::Interrupted,
        Self::Closed,
        Self::Full,
        Self::Empty,
        Self::Foreign,
        Self::Gone,
        Self::ArenaFull,
        Self::PeerDeath,
        Self::Unsupported,
        Self::Invalid,
        Self::Broken,
        Self::TooLarge,
        Self::Corrupt,
        Self::Panic,
        Self::Os,
    ];
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
            exit: None,
        }
    }

    pub(crate) fn os(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self {
            kind: Kind::Os,
            message: what.into(),
            source: Some(source.into()),
            exit: None,
        }
    }

    pub(crate) fn with_exit(self, status: ExitStatus) -> Self {
        Self {
            exit: Some(status),
            ..self
        }
    }

    /// The same once more, for another one who waited.
    pub(crate) fn again(&self) -> Self {
        Self {
            exit: self.exit,
            ..Self::new(self.kind, self.to_string())
        }
    }

    /// For another process of the same program.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind as u8];
        bytes.extend(self.to_string().into_bytes());
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) made bytes of.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (&kind, text) = bytes.split_first().unwrap_or((&u8::MAX, &[]));
        match Kind::ALL.into_iter().find(|&k| k as u8 == kind) {
            Some(kind) => Self::new(kind, String::from_utf8_lossy(text)),
            None => Self::corrupt("an error of another process"),
        }
    }

    pub(crate) fn timeout() -> Self {
        Self::new(Kind::Timeout, "the time allowed for waiting ran out")
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "a signal interrupted the wait")
    }

    pub(crate) fn corrupt(what: impl fmt::Display) -> Self {
        Self::new(
            Kind::Corrupt,
            format!("the shared memory is damaged: {what}; a process of the family wrote over it"),
        )
    }

    /// The deadline passed.
    pub fn is_timeout(&self) -> bool {
        self.kind == Kind::Timeout
    }

    /// A signal arrived during the wait; nothing has changed and the call may be repeated.
    pub fn is_interrupted(&self) -> bool {
        self.kind == Kind::Interrupted
    }

    /// The object was closed, here or (queues) for everybody.
    pub fn is_closed(&self) -> bool {
        self.kind == Kind::Closed
    }

    /// A bounded object has no room.
    pub fn is_full(&self) -> bool {
        self.kind == Kind::Full
    }

    /// There is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.kind == Kind::Empty
    }

    /// The handle belongs to another family of processes.
    pub fn is_foreign(&self) -> bool {
        self.kind == Kind::Foreign
    }

    /// The object behind the handle has been freed.
    pub fn is_gone(&self) -> bool {
        self.kind == Kind::Gone
    }

    /// The arena has reached its limit.
    pub fn is_arena_full(&self) -> bool {
        self.kind == Kind::ArenaFull
    }

    /// A process that was needed is dead.
    pub fn is_peer_death(&self) -> bool {
        self.kind == Kind::PeerDeath
    }

    /// This system lacks something that is needed.
    pub fn is_unsupported(&self) -> bool {
        self.kind == Kind::Unsupported
    }

    /// An argument or the object's state does not allow the call.
    pub fn is_invalid(&self) -> bool {
        self.kind == Kind::Invalid
    }

    /// The barrier is broken.
    pub fn is_broken(&self) -> bool {
        self.kind == Kind::Broken
    }

    /// A message or request is over a limit.
    pub fn is_too_large(&self) -> bool {
        self.kind == Kind::TooLarge
    }

    /// The shared memory holds something that cannot be true.
    pub fn is_corrupt(&self) -> bool {
        self.kind == Kind::Corrupt
    }

    /// The function that another process ran has panicked.
    pub fn is_panic(&self) -> bool {
        self.kind == Kind::Panic
    }

    /// How the process ended that the error is about, if it is about one.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.exit
    }

    /// The operating system's error, if that is what it was.
    pub fn os_error(&self) -> Option<&std::io::Error> {
        self.source.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
