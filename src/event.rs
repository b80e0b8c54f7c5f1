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

/// Where news goes.
pub trait EventSink: Send + Sync {
    /// Whether anybody reads this level; asked before a text is formatted.
    fn wants(&self, level: Level) -> bool;
    /// Takes one piece of news, possibly while locks are held: what a program hears of it waits for [`settle`], or for
    /// the end of the program's own call.
    ///
    /// [`settle`]: EventSink::settle
    fn emit(&self, event: Event<'_>);
    /// A thread of the library begins a piece of work.
    fn hold(&self) {}
    /// It has ended it, and has no lock: what came meanwhile goes to the program.
    fn settle(&self) {}
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
