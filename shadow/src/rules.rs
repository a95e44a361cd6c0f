//! Which rules count, and how much: the table of `codes`, with what a user has switched.
//!
//! A rule that is off is not reported; one that is a warning is reported, and changes no verdict. Either way a
//! block that can't be used because of it stays unverified: switching a rule off does not make anything sound.

use std::fmt;
use std::str::FromStr;

use crate::cause;
use crate::codes::{Code, Severity};
use crate::violation::Violation;

/// What a rule counts for; `None` is off.
type Level = Option<Severity>;

/// One switch: `CODE=off|warn|error`, where the code may be a family, `space/*` or `space/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSwitch {
    codes: Vec<Code>,
    level: Level,
}

/// Why a switch can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleError {
    /// There is no `=`.
    NoLevel(String),
    /// What is behind the `=` is no level.
    Level(String),
    /// No rule has this code.
    Unknown(String),
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleError::NoLevel(text) => write!(f, "'{text}' is no switch: CODE=off, CODE=warn or CODE=error"),
            RuleError::Level(level) => write!(f, "'{level}' is no level: off, warn or error"),
            RuleError::Unknown(code) => {
                write!(f, "no rule is called '{code}': 'btrfs-shadow rules' lists all of them")
            }
        }
    }
}

impl std::error::Error for RuleError {}

impl FromStr for RuleSwitch {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (pattern, level) = text.split_once('=').ok_or_else(|| RuleError::NoLevel(text.to_owned()))?;
        let level = match level {
            "off" => None,
            "warn" => Some(Severity::Warning),
            "error" => Some(Severity::Error),
            other => return Err(RuleError::Level(other.to_owned())),
        };
        let family = pattern.strip_suffix("/*").or_else(|| pattern.strip_suffix('/'));
        let meant = |code: &Code| family.map_or(code.name() == pattern, |family| code.family() == family);
        let codes: Vec<Code> = Code::ALL.iter().copied().filter(meant).collect();
        if codes.is_empty() {
            return Err(RuleError::Unknown(pattern.to_owned()));
        }
        Ok(RuleSwitch { codes, level })
    }
}

/// What every rule counts for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// In the order of [`Code::ALL`].
    levels: Vec<Level>,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { levels: Code::ALL.iter().map(|code| Some(code.severity())).collect() }
    }
}

impl Rules {
    /// The table with these switches, the later ones over the earlier.
    #[must_use]
    pub fn new(switches: &[RuleSwitch]) -> Self {
        let mut rules = Rules::default();
        for RuleSwitch { codes, level } in switches {
            for code in codes {
                if let Some(current) = rules.levels.get_mut(*code as usize) {
                    *current = *level;
                }
            }
        }
        rules
    }

    /// What a rule counts for; `None` when it is off.
    #[must_use]
    pub fn severity(&self, code: Code) -> Option<Severity> {
        self.levels.get(code as usize).copied().flatten()
    }

    /// Whether a violation of this rule is an error.
    #[must_use]
    pub fn is_error(&self, code: Code) -> bool {
        self.severity(code) == Some(Severity::Error)
    }

    /// The violation with the severity it has here; none where its rule is off.
    #[must_use]
    pub fn judge(&self, mut violation: Violation) -> Option<Violation> {
        violation.severity = self.severity(violation.code)?;
        violation.cause = violation.cause.or_else(|| cause::of_violation(&violation));
        Some(violation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(switches: &[&str]) -> Rules {
        let switches: Vec<RuleSwitch> = switches.iter().map(|text| text.parse().unwrap()).collect();
        Rules::new(&switches)
    }

    #[test]
    fn a_rule_counts_for_what_the_table_says() {
        let rules = Rules::default();
        for code in Code::ALL {
            assert_eq!(rules.severity(*code), Some(code.severity()), "{}", code.name());
        }
    }

    #[test]
    fn later_switches_win_over_earlier_and_families_are_switched_as_one() {
        let rules = rules(&["ref/*=off", "ref/count=warn", "tree/=warn", "tree/checksum=error"]);
        for code in Code::ALL {
            let expected = match (code.name(), code.family()) {
                ("ref/count", _) => Some(Severity::Warning),
                ("tree/checksum", _) => Some(Severity::Error),
                (_, "ref") => None,
                (_, "tree") => Some(Severity::Warning),
                _ => Some(code.severity()),
            };
            assert_eq!(rules.severity(*code), expected, "{}", code.name());
        }
        let violation = Violation::new(Code::RefCount, 0, 0, "");
        assert_eq!(rules.judge(violation).map(|found| found.severity), Some(Severity::Warning));
        assert!(rules.judge(Violation::new(Code::RefReallocated, 0, 0, "")).is_none());
    }

    #[test]
    fn what_is_no_switch_is_refused_with_a_reason() {
        let error = |text: &str| text.parse::<RuleSwitch>().unwrap_err().to_string();
        assert!(error("ref/count").contains("CODE=off"));
        assert!(error("ref/count=loud").contains("'loud' is no level"));
        assert!(error("ref/nonsense=off").contains("no rule is called 'ref/nonsense'"));
        assert!(error("nonsense/*=off").contains("no rule is called"));
        assert!(error("=off").contains("no rule is called"));
        assert!(error("ref/c*=off").contains("no rule is called"));
    }
}
