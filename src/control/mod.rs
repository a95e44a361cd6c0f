//! The control socket: `serve --control SOCK` listens, `ctl SOCK ...` asks.
//!
//! A request and its response are one JSON object a line. Only the user who started the server can connect. A client
//! that hangs, sends garbage or goes away costs itself its connection, and nobody else anything.

mod client;
mod server;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use client::run;
pub use server::{ControlServer, ControlSocket};

/// What somebody wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// How things stand.
    Status,
    /// The last violations.
    Violations,
    /// An event with this name.
    Mark {
        /// Whatever the user likes.
        name: String,
    },
    /// The paused commit is let through.
    Resume,
    /// The paused commit is refused.
    Reject,
    /// The server ends, as with SIGTERM.
    Stop,
}

/// The answer: an object with `ok`, and `error` or what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response(pub Value);

impl Response {
    /// It is done.
    #[must_use]
    pub fn ok() -> Self {
        Response(json!({ "ok": true }))
    }

    /// It can't be done.
    #[must_use]
    pub fn error(why: &str) -> Self {
        Response(json!({ "ok": false, "error": why }))
    }

    /// How things stand.
    #[must_use]
    pub fn status(status: Value) -> Self {
        Response(json!({ "ok": true, "status": status }))
    }

    /// Violations, oldest first.
    #[must_use]
    pub fn violations(violations: Vec<Value>) -> Self {
        Response(json!({ "ok": true, "violations": violations }))
    }
}
