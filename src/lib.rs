//! A vhost-user block backend that verifies the guest's btrfs at every transaction commit.

pub mod device;
pub mod engine;
pub mod image;
pub mod tap;
