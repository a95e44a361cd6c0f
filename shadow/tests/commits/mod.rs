//! Whole commits.

mod blocks;
mod clean;
mod faults;
mod items;
mod pointers;
mod random;
