//! The impure half of btrfs-shadow: a vhost-user block backend that verifies the guest's btrfs at every transaction
//! commit. ARCHITECTURE.md has the map.

pub mod capture;
pub mod check;
pub mod cli;
pub mod control;
pub mod device;
pub mod engine;
pub mod events;
pub mod fault;
pub mod guard;
pub mod image;
pub mod monitor;
pub mod output;
pub mod policy;
pub mod rules;
pub mod sandbox;
pub mod serve;
pub mod signals;
pub mod tap;
pub mod verifier;
