//! News that travels upward as data: a lower room emits an [`Event`] into the [`EventSink`] it was given.

/// How much a reader needs to care; the numbers are the C ABI's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something works otherwise than a user may expect.
    Warn = 2,
    /// Life cycle of long-lived objects.
    Info = 3,
    /// Details for a person who looks for a fault.
    Debug = 4,
}

/// One piece of news.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// How much a reader needs to care.
    pub level: Level,
    /// The room it comes from.
    pub room: &'static str,
    /// A sentence for people.
    pub text: &'a str,
}

/// Where news goes. Called without any lock held.
pub trait EventSink: Send + Sync {
    /// Whether anybody reads this level; asked before a text is formatted.
    fn wants(&self, level: Level) -> bool;
    /// Takes one piece of news.
    fn emit(&self, event: Event<'_>);
}

/// A sink that drops everything.
#[derive(Debug, Default)]
pub struct NoSink;

impl EventSink for NoSink {
    fn wants(&self, _level: Level) -> bool {
        false
    }

    fn emit(&self, _event: Event<'_>) {}
}
