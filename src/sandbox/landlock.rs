//! Landlock: no file is opened, made, removed or executed, and no TCP port bound or connected to, but what is said here.
//!
//! What is open already stays usable. Holds for io_uring as well, should a ring be able to open anything.

use std::path::PathBuf;

use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use super::{Fence, SandboxError, directory};

/// The newest version that this was tried with. Of what an older kernel has, all is used.
const VERSION: ABI = ABI::V7;

/// Fences off the calling thread. Files in the directories of `removes` can still be removed.
pub(super) fn enter(removes: &[PathBuf]) -> Result<Fence, SandboxError> {
    const WHAT: &str = "Landlock";
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(VERSION))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(VERSION)))
        .and_then(|rules| rules.scope(Scope::from_all(VERSION)))
        .and_then(Ruleset::create);
    let mut ruleset = ruleset.map_err(SandboxError::refused(WHAT))?;
    for path in removes {
        let directory = PathFd::new(directory(path)).map_err(SandboxError::refused(WHAT))?;
        let rule = PathBeneath::new(directory, AccessFs::RemoveFile);
        ruleset = ruleset.add_rule(rule).map_err(SandboxError::refused(WHAT))?;
    }
    let status = ruleset.restrict_self().map_err(SandboxError::refused(WHAT))?;
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => {
            Fence::Missing("this kernel does not have it, or it is switched off".to_owned())
        }
        // Of which version is the kernel's affair: nothing that is there is left out.
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Fence::Up,
    })
}
