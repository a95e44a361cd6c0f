//! Whole commits.

mod blocks;
mod clean;
mod faults;
mod foresight;
mod ghosts;
mod group_edges;
mod items;
mod leaves;
mod links;
mod mended;
mod pointers;
mod random;
mod space;
mod switched;
mod unreadable;
