//! `btrfs-shadow serve`: one disk, served until the process is told to stop or, with `--once`, until the guest
//! disconnects.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use shadow::Rules;

use crate::capture::{Capture, CaptureShared, Message};
use crate::cli::{Serve, Switch};
use crate::control::{ControlServer, ControlSocket};
use crate::device::{DeviceOptions, Limits, Server, SessionEnd, Socket, StopHandle};
use crate::events::{Json, Lines, Outlet, Patience, Sinks, Text};
use crate::fault::FaultPlan;
use crate::image::{Image, LOCK_PATIENCE, RawImage, RawOptions};
use crate::sandbox::{self, Needs};
use crate::signals::Signals;
use crate::tap::Tap;
use crate::verifier::{self, Summary, VerifierOptions};

/// What `--print-capabilities` prints.
pub const CAPABILITIES: &str = r#"{"type":"block","features":["read-only","blk-file"]}"#;

/// Serves the disk; returns what was seen.
///
/// # Errors
/// When the image, the socket or the events file can't be used.
pub fn run(options: &Serve) -> Result<Summary> {
    let blk_file = options.blk_file.as_deref().context("--blk-file is missing")?;
    let stop = StopHandle::new().context("can't make an event")?;
    // Before any thread is started, so that all of them leave the signals to one.
    let signals = Signals::block().context("can't handle signals")?;
    let image = open(blk_file, options)?;
    let sinks = sinks(options)?;
    let socket = socket(options)?;
    let shared = CaptureShared::new(Arc::clone(&image), options.capture_memory);
    let rules = Arc::new(Rules::new(&options.rules.switches));
    let shared = Arc::new(shared.with_policy(options.on_violation).with_rules(Arc::clone(&rules)));
    let (sender, messages) = crossbeam_channel::unbounded();
    let control = options.control.as_deref().map(ControlSocket::bind).transpose()?;
    let fault = options.plant_fault.map(FaultPlan::new);
    let tap: Arc<dyn Tap> = Arc::new(Capture::new(Arc::clone(&shared), sender.clone(), fault));
    let device_options = DeviceOptions {
        num_queues: options.num_queues,
        poll: Duration::from_micros(options.poll_us),
        inflight: inflight(options),
        limits: Limits { iops: options.iops, bps: options.bps.map(|bps| bps as u64) },
        block_size: options.block_size,
        serial: options.serial.clone(),
    };
    let mut server = Server::bind(socket, Arc::clone(&image), tap, device_options)?;
    // Everything is open. Nothing that a guest has a hand in has been looked at, and no thread been started.
    enter_sandbox(options)?;
    signals.trigger(&stop).context("can't handle signals")?;
    let control = control.map(|socket| ControlServer::start(socket, sender.clone())).transpose()?;
    let verifier_options = VerifierOptions {
        shadow_memory: options.shadow_memory,
        verify_data: options.verify_data,
        audit: options.audit,
        rules,
        disk: blk_file.display().to_string(),
        stop: Some(stop.clone()),
        monitor: options.qmp.clone(),
    };
    let verifier = verifier::spawn(image, shared, (sender.clone(), messages), sinks, verifier_options)?;
    loop {
        match server.serve_one(&stop)? {
            SessionEnd::Disconnected if !options.once => {}
            SessionEnd::Disconnected | SessionEnd::Stopped | SessionEnd::Exhausted => break,
        }
    }
    drop(server);
    drop(control);
    // Behind everything that was said before: what is held has been answered by now.
    let _ = sender.send(Message::Finish);
    match verifier.join() {
        Ok(summary) => Ok(summary),
        Err(_) => bail!("the verifier's thread has panicked: please report this"),
    }
}

fn open(path: &Path, options: &Serve) -> Result<Arc<dyn Image>> {
    let raw_options = RawOptions {
        read_only: options.read_only,
        direct: options.direct_io,
        engine: options.io_engine,
        lock: (options.locking == Switch::On).then_some(LOCK_PATIENCE),
    };
    match RawImage::open_with(path, raw_options) {
        Ok(image) => {
            // Tried now: whether there are engines should be known before a guest counts on them.
            image.engine()?;
            Ok(Arc::new(image))
        }
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            bail!("{error}. Stop the other one first; --locking off serves it regardless, and can destroy it")
        }
        Err(error) => Err(error.into()),
    }
}

fn enter_sandbox(options: &Serve) -> Result<()> {
    if options.sandbox == Switch::Off {
        return Ok(());
    }
    let sockets = options.socket_path.iter().chain(&options.control).cloned();
    let removes = sockets.chain(inflight(options)).collect();
    sandbox::enter_process(&Needs { removes, connects: options.qmp.is_some() })
        .context("can't enter the sandbox (--sandbox off does without)")
}

/// Standard output alone, for people or as JSON; its reader may take its time.
///
/// # Errors
/// When there are no descriptors left.
pub fn output_sinks(json: bool) -> io::Result<Sinks> {
    let mut sinks = Sinks::default();
    let outlet = Outlet::standard(io::stdout(), Patience::Readers)?;
    match json {
        true => sinks.push(Box::new(Lines::new(Json, outlet, STDOUT))),
        false => sinks.push(Box::new(Lines::new(Text, outlet, STDOUT))),
    }
    Ok(sinks)
}

const STDOUT: &str = "standard output";

fn sinks(options: &Serve) -> Result<Sinks> {
    let mut sinks = Sinks::default();
    let stdout = || Outlet::standard(io::stdout(), Patience::None);
    let events_on_stdout = options.events.as_deref() == Some(Path::new("-"));
    if !options.quiet {
        let text = match events_on_stdout {
            true => Lines::new(Text, Outlet::standard(io::stderr(), Patience::None)?, "standard error"),
            false => Lines::new(Text, stdout()?, STDOUT),
        };
        match options.events {
            Some(_) => sinks.push_beside(Box::new(text)),
            None => sinks.push(Box::new(text)),
        }
    }
    match options.events.as_deref() {
        None => {}
        Some(_) if events_on_stdout => sinks.push(Box::new(Lines::new(Json, stdout()?, STDOUT))),
        Some(path) => {
            let name = path.display().to_string();
            let file = File::create(path).with_context(|| format!("can't create events file {name}"))?;
            sinks.push(Box::new(Lines::new(Json, Outlet::new(file, Patience::None), name)));
        }
    }
    Ok(sinks)
}

/// Where requests in flight are recorded: next to the socket, whose next owner looks for it there.
fn inflight(options: &Serve) -> Option<PathBuf> {
    let beside = |socket: &PathBuf| {
        let mut path = socket.clone().into_os_string();
        path.push(".inflight");
        PathBuf::from(path)
    };
    options.inflight.clone().or_else(|| options.socket_path.as_ref().map(beside))
}

fn socket(options: &Serve) -> Result<Socket> {
    match (&options.socket_path, options.fd) {
        (Some(path), None) => Ok(Socket::Path(path.clone())),
        (None, Some(fd)) => {
            // SAFETY: the descriptor was handed to this process for this purpose alone, as the option says.
            unsafe { Socket::from_raw_fd(fd) }.with_context(|| format!("can't use --fd {fd}"))
        }
        _ => bail!("one of --socket-path and --fd is needed"),
    }
}
