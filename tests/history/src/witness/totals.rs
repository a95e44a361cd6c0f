//! What was seen, in numbers.

/// What was seen, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Transaction commits whose verdict was compared with the oracle.
    pub commits: u64,
    /// Of these, those whose size of change was compared as well.
    pub measured: u64,
    /// Log commits.
    pub log_commits: u64,
    /// Violations reported.
    pub violations: u64,
    /// Differences that the oracle found.
    pub differences: u64,
    /// Commits whose verdict was neither clean nor violations.
    pub unverified: u64,
    /// References that came or went, over all commits.
    pub references: u64,
    /// Commits with subvolumes that were half dropped.
    pub half_dropped: u64,
    /// Commits with relocation trees.
    pub relocating: u64,
}

impl Totals {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: &Totals) -> Totals {
        Totals {
            commits: self.commits + other.commits,
            measured: self.measured + other.measured,
            log_commits: self.log_commits + other.log_commits,
            violations: self.violations + other.violations,
            differences: self.differences + other.differences,
            unverified: self.unverified + other.unverified,
            references: self.references + other.references,
            half_dropped: self.half_dropped + other.half_dropped,
            relocating: self.relocating + other.relocating,
        }
    }
}
