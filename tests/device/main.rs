//! The device, driven by a vhost-user client in the same process.

mod client;
mod harness;
mod integrity;
