//! The asking side: `btrfs-shadow ctl`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cli::{Ctl, CtlCommand};
use crate::control::Request;

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
    match request {
        Request::Status if json => println!("{}", response["status"]),
        Request::Status => print_status(&response["status"]),
        Request::Violations => {
            for violation in response["violations"].as_array().into_iter().flatten() {
                if json {
                    println!("{violation}");
                } else {
                    println!(
                        "{} {} (generation {})\n  {}",
                        text(&violation["severity"]).to_uppercase(),
                        text(&violation["code"]),
                        text(&violation["generation"]),
                        text(&violation["message"])
                    );
                }
            }
        }
        _ => {}
    }
    Ok(())
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

fn print_status(status: &Value) {
    let guest = if status["connected"] == true { "connected" } else { "not connected" };
    println!("disk        {}, {} bytes, guest {guest}", text(&status["disk"]), status["size"]);
    match &status["file_system"] {
        Value::Null => println!("file system none"),
        fs => println!(
            "file system {} generation {}, nodesize {}, {}",
            text(&fs["fs"]),
            fs["generation"],
            fs["nodesize"],
            text(&fs["csum"])
        ),
    }
    println!("policy      {}", text(&status["policy"]));
    let counters = &status["counters"];
    println!(
        "commits     {} ({} of them log commits): {} clean, {} unverified, {} refused",
        counters["commits"],
        counters["log_commits"],
        counters["clean"],
        counters["unverified"],
        counters["refused"]
    );
    println!("violations  {}, and {} warnings", counters["violations"], counters["warnings"]);
    match &status["paused"] {
        Value::Null => println!("paused      no"),
        paused => {
            let seconds = paused["paused_ms"].as_f64().unwrap_or_default() / 1e3;
            println!("paused      generation {}, for {seconds:.1} s:", paused["generation"]);
            for why in paused["why"].as_array().into_iter().flatten() {
                println!("  {}", text(why));
            }
        }
    }
}
