//! What can be done to a mounted btrfs.

pub mod files;
pub mod ioctl;
