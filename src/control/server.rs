//! The listening side.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::capture::Message;
use crate::control::{Request, Response};
use crate::device::{SocketFile, listen};

/// Clients at a time. One more is told so and sent away.
const MAX_CLIENTS: usize = 8;

/// Bytes of a request. A longer line ends the connection.
const MAX_LINE: usize = 4096;

/// Bytes of a mark's name. A longer one is refused.
const MAX_NAME: usize = 256;

/// How long a client may take for a request, or to take its response. Then it is sent away.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the verifier may take to answer: it may be in the middle of a large commit.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// How long the end of the server waits for responses that are on their way.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// A control socket that is listened on. Its file goes away with it.
pub struct ControlServer {
    _file: SocketFile,
    counts: Arc<Counts>,
}

/// What is going on.
#[derive(Default)]
struct Counts {
    clients: AtomicUsize,
    /// Requests that are being answered.
    requests: AtomicUsize,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // The one that asked for the end wants to know that it is near.
        let deadline = Instant::now() + LAST_PATIENCE;
        while self.counts.requests.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A control socket that nobody answers at yet.
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl ControlSocket {
    /// Listens on a Unix socket at `path` that only this user can use.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (listener, file) = private(|| listen(path)).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()))
        })?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(ControlSocket { listener, file })
    }
}

impl ControlServer {
    /// Answers at `socket`; requests go to `verifier`.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(socket: ControlSocket, verifier: Sender<Message>) -> io::Result<Self> {
        let ControlSocket { listener, file } = socket;
        let counts = Arc::new(Counts::default());
        let known = Arc::clone(&counts);
        let thread = std::thread::Builder::new().name("control".to_owned());
        thread.spawn(move || accept(&listener, &verifier, &known))?;
        Ok(ControlServer { _file: file, counts })
    }
}

/// Does something while no file that is made can be used by others: a socket is open to them from its first moment.
fn private<T>(make: impl FnOnce() -> T) -> T {
    // SAFETY: umask has no preconditions and can't fail.
    let before = unsafe { libc::umask(0o177) };
    let made = make();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    made
}

fn accept(listener: &UnixListener, verifier: &Sender<Message>, counts: &Arc<Counts>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("control socket: {error}");
                // Descriptors may be short; going round at once would only make it worse.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Place::take(counts);
        let verifier = verifier.clone();
        let spawned = std::thread::Builder::new().name("control-client".to_owned()).spawn(move || {
            // Whatever goes wrong is the client's own affair.
            let _ = serve(stream, &place, &verifier);
        });
        if let Err(error) = spawned {
            tracing::warn!("control socket: {error}");
        }
    }
}

/// One client, counted.
struct Place {
    counts: Arc<Counts>,
    /// Whether there was room for it.
    is_free: bool,
}

impl Place {
    fn take(counts: &Arc<Counts>) -> Self {
        let taken = counts.clients.fetch_add(1, Ordering::SeqCst);
        Place { counts: Arc::clone(counts), is_free: taken < MAX_CLIENTS }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.clients.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(mut stream: UnixStream, place: &Place, verifier: &Sender<Message>) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    if !place.is_free {
        return respond(&mut stream, &Response::error("too many clients"));
    }
    let mut buffer = Vec::new();
    loop {
        match read_line(&mut stream, &mut buffer)? {
            Line::End => return Ok(()),
            Line::TooLong => return respond(&mut stream, &Response::error("the request is too long")),
            Line::Whole(line) => {
                place.counts.requests.fetch_add(1, Ordering::SeqCst);
                let response = match serde_json::from_slice(&line) {
                    Ok(request) => ask(request, verifier),
                    Err(error) => Response::error(&format!("not a request: {error}")),
                };
                let responded = respond(&mut stream, &response);
                place.counts.requests.fetch_sub(1, Ordering::SeqCst);
                responded?;
            }
        }
    }
}

fn respond(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    stream.write_all((response.0.to_string() + "\n").as_bytes())
}

fn ask(request: Request, verifier: &Sender<Message>) -> Response {
    if matches!(&request, Request::Mark { name } if name.len() > MAX_NAME) {
        return Response::error("the name is too long");
    }
    let (reply, answer) = crossbeam_channel::bounded(1);
    if verifier.send(Message::Control(request, reply)).is_err() {
        return Response::error("the server is ending");
    }
    answer
        .recv_timeout(ANSWER_PATIENCE)
        .unwrap_or_else(|_| Response::error("no answer: the verifier is at work"))
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

/// The next line, in the time that a request may take. What follows it stays in `buffer`.
fn read_line(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> io::Result<Line> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let rest = buffer.split_off(end + 1);
            return Ok(Line::Whole(std::mem::replace(buffer, rest)));
        }
        if buffer.len() > MAX_LINE {
            return Ok(Line::TooLong);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Line::End);
        }
        stream.set_read_timeout(Some(left))?;
        let mut bytes = [0; 1024];
        match stream.read(&mut bytes)? {
            0 => return Ok(Line::End),
            count => buffer.extend_from_slice(&bytes[..count]),
        }
    }
}
