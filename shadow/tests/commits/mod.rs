//! Whole commits.

mod clean;
