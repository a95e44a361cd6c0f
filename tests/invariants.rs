//! The invariants of the house that a compiler doesn't check: what each part of the program may use and know.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Every `.rs` file under a directory of the repository, with its text.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {directory}");
    found
}

/// The text without comments, and without the unit tests that follow at the end of a file.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Asserts that none of `words` occurs in the code of a directory, but for files that `allowed` lets through.
fn forbid(directory: &str, words: &[&str], allowed: impl Fn(&Path) -> bool) {
    let mut offences = Vec::new();
    for (path, text) in sources(directory).into_iter().filter(|(path, _)| !allowed(path)) {
        let text = code(&text).to_lowercase();
        let found = words.iter().filter(|word| text.contains(**word));
        offences.extend(found.map(|word| format!("{}: {word}", path.display())));
    }
    assert!(offences.is_empty(), "{offences:#?}");
}

/// Builds a package of the workspace in a target directory of its own, for the tests here run inside cargo.
fn build(arguments: &[&str]) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("invariants");
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["check", "--quiet", "--locked"])
        .args(arguments)
        .env("CARGO_TARGET_DIR", target)
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn parser_needs_no_std() {
    let lib =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("parser/src/lib.rs")).unwrap();
    assert!(lib.contains("\n#![no_std]\n") && !lib.contains("extern crate std"));
    forbid("parser/src", &["std::"], |_| false);
    build(&["-p", "parser", "--no-default-features"]);
}

#[test]
fn parser_has_no_io_clock_or_unsafe_code() {
    let lib =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("parser/src/lib.rs")).unwrap();
    assert!(lib.contains("deny(unsafe_code)") || lib.contains("forbid(unsafe_code)"));
    forbid("parser/src", &["unsafe ", ".unwrap()", ".expect(", "panic!", "unreachable!", "todo!"], |_| false);
}

#[test]
fn shadow_is_pure() {
    let words = [
        "std::fs",
        "std::net",
        "std::thread",
        "std::time",
        "std::process",
        "std::env",
        "instant::",
        "systemtime",
        "tracing::",
    ];
    forbid("shadow/src", &words, |_| false);
}

#[test]
fn virtio_is_known_to_the_device_alone() {
    let in_device = |path: &Path| path.components().any(|part| part.as_os_str() == "device");
    // Names in code; the words may well stand in a help text.
    let names = ["virtio_", "virtio::", "vhost_", "vhost::", "vring", "vm_memory", "descriptor_chain"];
    forbid("src", &names, in_device);
    forbid("shadow/src", &names, |_| false);
    forbid("parser/src", &names, |_| false);
}

#[test]
fn byte_layouts_are_known_to_one_module() {
    let layouts = [
        "from_le_bytes",
        "from_be_bytes",
        "from_ne_bytes",
        "repr(c",
        "repr(packed",
        "transmute",
        "offset_of",
    ];
    let is_layout = |path: &Path| path.ends_with("parser/src/layout.rs");
    forbid("parser/src", &layouts, is_layout);
    forbid("parser/src", &["derive(frombytes", "little_endian"], is_layout);
    // Checksums are hashed and stored as little-endian bytes.
    forbid("parser/src", &["to_le_bytes"], |path| path.ends_with("parser/src/csum.rs"));
    forbid("shadow/src", &layouts, |_| false);
    forbid("shadow/src", &["to_le_bytes", "zerocopy", "parser::layout"], |_| false);
    forbid("src", &["zerocopy", "parser::layout"], |_| false);
}
