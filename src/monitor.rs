//! A client of QEMU's monitor (QMP), just large enough to stop the virtual machine while a commit is paused and to
//! let it go on afterwards. What goes wrong with it is a notice, and changes nothing else.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use serde_json::{Value, json};

use crate::capture::Message;

/// How long the monitor may take for anything but `stop`, which waits for the paused write itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a wait looks up.
const STEP: Duration = Duration::from_millis(100);

/// Bytes of one message. More is no monitor.
const LINE_LIMIT: usize = 1 << 20;

/// What the monitor's thread has to tell.
#[derive(Debug)]
pub enum MonitorNews {
    /// Worth a notice.
    Said(String),
    /// The connection has ended, with the virtual machine or without it.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Stop,
    GoOn,
}

/// Tells QEMU's monitor to stop the virtual machine, and to go on.
pub struct Monitor {
    commands: Sender<Command>,
    stopped: Arc<AtomicBool>,
}

impl Monitor {
    /// A client of the monitor at `path`, which it connects to when there is something to say. What it has to tell
    /// goes to `news`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(path: PathBuf, news: Sender<Message>) -> io::Result<Self> {
        let (commands, todo) = crossbeam_channel::unbounded();
        let stopped = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopped);
        std::thread::Builder::new().name("monitor".to_owned()).spawn(move || {
            let tell = |what| {
                // Nobody listens at the end of the process.
                let _ = news.send(Message::Monitor(what));
            };
            while let Ok(command) = todo.recv() {
                // Where the virtual machine was not stopped it needs no leave to go on.
                if command == Command::Stop {
                    if let Err(error) = stop_and_go_on(&path, &todo, &flag, &tell) {
                        tell(MonitorNews::Said(format!("QEMU's monitor at {}: {error}", path.display())));
                    }
                    flag.store(false, Ordering::SeqCst);
                    tell(MonitorNews::Gone);
                }
            }
        })?;
        Ok(Monitor { commands, stopped })
    }

    /// Has the virtual machine stopped.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }

    /// Lets the virtual machine go on, if it was stopped from here.
    pub fn go_on(&self) {
        let _ = self.commands.send(Command::GoOn);
    }

    /// Whether the virtual machine is stopped, or about to be, because of a command from here.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// One pause of the virtual machine, from the connection to the end of it.
fn stop_and_go_on(
    path: &Path,
    todo: &Receiver<Command>,
    stopped: &AtomicBool,
    tell: &dyn Fn(MonitorNews),
) -> io::Result<()> {
    let mut session = Session::connect(path)?;
    let status = session.execute("query-status", Some(PATIENCE))?;
    if status["running"] != true {
        tell(MonitorNews::Said("the virtual machine was stopped already, and stays so".to_owned()));
        return Ok(());
    }
    // Before the command: its rings may be stopped before there is an answer.
    stopped.store(true, Ordering::SeqCst);
    session.execute("stop", None)?;
    tell(MonitorNews::Said("the virtual machine is stopped".to_owned()));
    while todo.try_recv() != Ok(Command::GoOn) {
        if todo.try_recv() == Err(TryRecvError::Disconnected) {
            break;
        }
        session.skip(STEP)?;
    }
    session.execute("cont", Some(PATIENCE))?;
    tell(MonitorNews::Said("the virtual machine goes on".to_owned()));
    Ok(())
}

/// A connection past its greeting.
struct Session {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Session {
    fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut session = Session { stream: BufReader::new(stream), line: Vec::new() };
        let deadline = Instant::now() + PATIENCE;
        let greeting = session.message(Some(deadline))?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::TimedOut, "no greeting: is another client connected to it?")
        })?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other("what greets there is no QMP monitor"));
        }
        session.execute("qmp_capabilities", Some(PATIENCE))?;
        Ok(session)
    }

    /// Executes a command and returns what it returns; events in between are passed over.
    fn execute(&mut self, command: &str, patience: Option<Duration>) -> io::Result<Value> {
        let request = json!({ "execute": command }).to_string() + "\n";
        self.stream.get_mut().write_all(request.as_bytes())?;
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            let Some(mut message) = self.message(deadline)? else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer to '{command}'")));
            };
            if let Some(error) = message.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason given");
                return Err(io::Error::other(format!("'{command}' failed: {why}")));
            }
            if message.get("return").is_some() {
                return Ok(message["return"].take());
            }
        }
    }

    /// Passes over what comes within some time. Fails when the monitor is gone.
    fn skip(&mut self, time: Duration) -> io::Result<()> {
        let deadline = Instant::now() + time;
        while self.message(Some(deadline))?.is_some() {}
        Ok(())
    }

    /// The next message; `None` when there is none by the deadline.
    fn message(&mut self, deadline: Option<Instant>) -> io::Result<Option<Value>> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.stream.get_ref().set_read_timeout(left)?;
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the monitor is gone")),
                Ok(_) if self.line.ends_with(b"\n") => {
                    let message = serde_json::from_slice(&self.line)?;
                    self.line.clear();
                    return Ok(Some(message));
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error),
            }
            if self.line.len() > LINE_LIMIT {
                return Err(io::Error::other("an endless message"));
            }
        }
    }
}
