//! A sink that writes: what an event looks like is a [`Format`]'s affair, where it goes an [`Outlet`]'s.
//!
//! A disk that is full, a pipe that nobody reads or a terminal that is gone never holds up or ends anything. Events wait
//! for room and are tried again with each event and each [`RETRY`]. What finds no room in memory either is lost: that is
//! counted, said where the events are missing, and said in the log at the beginning and at the end.

use std::io;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use crate::events::outlet::Outlet;
use crate::events::{Event, Sink, Untold};

/// How often what waits is tried again while there are no events.
pub const RETRY: Duration = Duration::from_secs(1);

/// How long the end waits for a reader.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

/// How often an outage is talked about, at most: a disk that is nearly full has many.
const TALK: Duration = Duration::from_secs(60);

/// What events look like.
pub trait Format: Send {
    /// Writes an event to `out`.
    ///
    /// # Errors
    /// When `out` has some.
    fn format(&self, event: &Event<'_>, out: &mut Vec<u8>) -> io::Result<()>;
}

/// Writes events in a format to an outlet.
pub struct Lines<F> {
    format: F,
    outlet: Outlet,
    name: String,
    /// Events that are lost.
    lost: u64,
    /// Those of which it has to be said yet where they are missing.
    unsaid: u64,
    outage: Option<Outage>,
    said: Option<Instant>,
}

/// Something can't be written.
struct Outage {
    why: String,
    /// Lost before.
    lost: u64,
    /// Whether the log has heard of it.
    said: bool,
    next: Instant,
}

impl<F: Format> Lines<F> {
    /// Writes to `outlet`, which messages call `name`.
    #[must_use]
    pub fn new(format: F, outlet: Outlet, name: impl Into<String>) -> Self {
        Lines { format, outlet, name: name.into(), lost: 0, unsaid: 0, outage: None, said: None }
    }

    /// Puts an event behind those that wait, if there is room.
    fn offer(&mut self, event: &Event<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.format.format(event, &mut bytes)?;
        if self.mark_gap(bytes.len())? && self.outlet.has_room(bytes.len()) {
            self.outlet.push(bytes, true);
        } else {
            self.lost += 1;
            self.unsaid += 1;
        }
        Ok(())
    }

    /// Says where events are missing, if there is room for that and `more` bytes. Whether nothing is left to be said.
    fn mark_gap(&mut self, more: usize) -> io::Result<bool> {
        if self.unsaid == 0 {
            return Ok(true);
        }
        let mut bytes = Vec::new();
        self.format.format(&Event::Lost { count: self.unsaid }, &mut bytes)?;
        if !self.outlet.has_room(bytes.len() + more) {
            return Ok(false);
        }
        self.outlet.push(bytes, false);
        self.unsaid = 0;
        Ok(true)
    }

    /// Writes what can be written.
    fn drain(&mut self) -> io::Result<()> {
        let mut drained = self.outlet.drain();
        if drained.is_ok() && self.unsaid > 0 {
            self.mark_gap(0)?;
            drained = self.outlet.drain();
        }
        match &drained {
            Ok(()) => self.recovered(),
            Err(error) => self.failed(error),
        }
        drained
    }

    fn failed(&mut self, error: &io::Error) {
        let now = Instant::now();
        if let Some(outage) = &mut self.outage {
            outage.next = now + RETRY;
            return;
        }
        let why = match error.kind() {
            io::ErrorKind::WouldBlock => "nobody reads it".to_owned(),
            _ => error.to_string(),
        };
        let said = self.said.is_none_or(|said| now.saturating_duration_since(said) >= TALK);
        if said {
            error!(
                "{} can't be written: {why}. Going on; events wait for room, as many as memory is kept for",
                self.name
            );
            self.said = Some(now);
        }
        self.outage = Some(Outage { why, lost: self.lost, said, next: now + RETRY });
    }

    fn recovered(&mut self) {
        let Some(outage) = self.outage.take() else { return };
        match self.lost - outage.lost {
            0 if outage.said => warn!("{} can be written again; no event was lost", self.name),
            0 => {}
            lost => warn!("{} can be written again; {lost} events were lost ({})", self.name, outage.why),
        }
    }
}

impl<F: Format> Sink for Lines<F> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        // What waits first: it may make room.
        if self.outage.is_some() {
            let _ = self.drain();
        }
        self.offer(event)?;
        let _ = self.drain();
        Ok(())
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn untold(&self) -> Untold {
        Untold { waiting: self.outlet.waiting(), lost: self.lost }
    }

    fn retry_at(&self) -> Option<Instant> {
        self.outage.as_ref().map(|outage| outage.next)
    }

    fn retry(&mut self) {
        let _ = self.drain();
    }

    fn finish(&mut self) {
        let deadline = Instant::now() + LAST_PATIENCE;
        // Only a reader can be waited for.
        while let Err(error) = self.drain() {
            if error.kind() != io::ErrorKind::WouldBlock || Instant::now() >= deadline {
                self.lost += self.outlet.waiting();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.lost > 0 {
            let why = self.outage.as_ref().map_or(String::new(), |outage| format!(": {}", outage.why));
            error!("{} events were not written to {}{why}", self.lost, self.name);
        }
    }
}
