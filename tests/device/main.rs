//! The device, driven from outside by a vhost-user client and by a hand-made frontend.

mod bare;
mod client;
mod counting;
#[path = "../common/engines.rs"]
mod engines;
mod erase;
mod frontend;
mod harness;
mod hostile;
mod integrity;
mod layout;
mod lifecycle;
mod resize;
mod rings;
mod throttle;
mod unruly;
mod write_cache;
