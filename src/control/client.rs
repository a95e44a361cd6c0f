//! The asking side: `btrfs-shadow ctl`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cli::{Ctl, CtlCommand};
use crate::control::Request;
use crate::output;

/// Longer than the server takes to say that there is no answer.
const PATIENCE: Duration = Duration::from_secs(90);

/// Bytes of a response. More is no server of ours.
const MAX_RESPONSE: u64 = 64 << 20;

/// Asks, and prints the answer.
///
/// # Errors
/// When nobody answers, or the answer is that it can't be done.
pub fn run(options: &Ctl) -> Result<()> {
    let (request, json) = match &options.command {
        CtlCommand::Status { json } => (Request::Status, *json),
        CtlCommand::Violations { json } => (Request::Violations, *json),
        CtlCommand::Mark { name } => (Request::Mark { name: name.clone() }, false),
        CtlCommand::Resume => (Request::Resume, false),
        CtlCommand::Reject => (Request::Reject, false),
        CtlCommand::Stop => (Request::Stop, false),
    };
    let name = options.socket.display();
    let response = ask(options, &request).with_context(|| format!("can't ask {name}"))?;
    if response["ok"] != true {
        bail!("{}", response["error"].as_str().unwrap_or("the answer makes no sense"));
    }
    output::print(&match request {
        Request::Status if json => format!("{}\n", response["status"]),
        Request::Status => status_text(&response["status"]),
        Request::Violations => {
            let violations = response["violations"].as_array().into_iter().flatten();
            violations.map(|violation| violation_text(violation, json)).collect()
        }
        _ => String::new(),
    })
}

fn violation_text(violation: &Value, json: bool) -> String {
    if json {
        return format!("{violation}\n");
    }
    format!(
        "{} {} (generation {})\n  {}\n",
        text(&violation["severity"]).to_uppercase(),
        text(&violation["code"]),
        text(&violation["generation"]),
        text(&violation["message"])
    )
}

fn ask(options: &Ctl, request: &Request) -> Result<Value> {
    let mut stream = UnixStream::connect(&options.socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all((serde_json::to_string(request)? + "\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).take(MAX_RESPONSE).read_line(&mut line)?;
    if line.is_empty() {
        bail!("it hung up");
    }
    Ok(serde_json::from_str(&line)?)
}

/// A value without the quotes of a JSON string.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn status_text(status: &Value) -> String {
    let mut lines = Vec::new();
    let guest = if status["connected"] == true { "connected" } else { "not connected" };
    lines.push(format!("disk        {}, {} bytes, guest {guest}", text(&status["disk"]), status["size"]));
    match &status["file_system"] {
        Value::Null => lines.push("file system none".to_owned()),
        fs => lines.push(format!(
            "file system {} generation {}, nodesize {}, {}",
            text(&fs["fs"]),
            fs["generation"],
            fs["nodesize"],
            text(&fs["csum"])
        )),
    }
    lines.push(format!("policy      {}", text(&status["policy"])));
    let counters = &status["counters"];
    lines.push(format!(
        "commits     {} ({} of them log commits): {} clean, {} unverified, {} refused",
        counters["commits"],
        counters["log_commits"],
        counters["clean"],
        counters["unverified"],
        counters["refused"]
    ));
    lines.push(format!("violations  {}, and {} warnings", counters["violations"], counters["warnings"]));
    match &status["paused"] {
        Value::Null => lines.push("paused      no".to_owned()),
        paused => {
            let seconds = paused["paused_ms"].as_f64().unwrap_or_default() / 1e3;
            lines.push(format!("paused      generation {}, for {seconds:.1} s:", paused["generation"]));
            let why = paused["why"].as_array().into_iter().flatten();
            lines.extend(why.map(|why| format!("  {}", text(why))));
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
