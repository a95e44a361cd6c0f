//! The images made by others: `../shared/corpus` beside the repository, with a manifest of what is wrong in each.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::tool;

/// What must be found in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: a violation is a false alarm.
    Clean,
    /// A violation of one of the families.
    Violation,
    /// No file system can be opened.
    Unreadable,
    /// Only a clean end counts.
    Either,
}

/// A row of the manifest.
#[derive(Debug, Clone)]
pub struct Row {
    /// File in `images`.
    pub file: String,
    /// Whether it is a metadata dump, to be restored with `btrfs-image`.
    pub is_dump: bool,
    /// What must be found.
    pub verdict: Verdict,
    /// Families of which one violation must be; any, when there are none.
    pub families: Vec<String>,
    /// What is wrong with it.
    pub what: String,
}

/// The corpus' directory.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus")
}

/// Every row of the manifest.
///
/// # Panics
/// When the corpus is missing or the manifest has another form.
#[must_use]
pub fn rows() -> Vec<Row> {
    let path = directory().join("MANIFEST.tsv");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("the corpus belongs beside the repository, in ../shared/corpus: {error}")
    });
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("file\tform\tverdict\tfamily\twhat"), "columns of the manifest");
    lines.map(row).collect()
}

fn row(line: &str) -> Row {
    let columns: Vec<&str> = line.split('\t').collect();
    let [file, form, verdict, family, what] = columns[..] else { panic!("five columns: {line}") };
    let verdict = match verdict {
        "clean" => Verdict::Clean,
        "violation" => Verdict::Violation,
        "unreadable" => Verdict::Unreadable,
        "either" => Verdict::Either,
        other => panic!("unknown verdict {other}"),
    };
    Row {
        file: file.to_owned(),
        is_dump: match form {
            "dump" => true,
            "raw" => false,
            other => panic!("unknown form {other}"),
        },
        verdict,
        families: family.split('|').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        what: what.to_owned(),
    }
}

/// An image of the corpus, unpacked into a temporary directory that goes with the value.
#[derive(Debug)]
pub struct Unpacked {
    _dir: TempDir,
    path: PathBuf,
}

impl Unpacked {
    /// The image file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Row {
    /// Decompresses the image and, for a dump, restores it.
    ///
    /// # Panics
    /// When `xz` or `btrfs-image` is missing or fails.
    #[must_use]
    pub fn unpack(&self) -> Unpacked {
        let dir = TempDir::with_prefix("btrfs-shadow-").expect("a temporary directory");
        let packed = directory().join("images").join(&self.file);
        let plain = dir.path().join("plain");
        if self.file.ends_with(".xz") {
            let output = tool::output("xz", [Path::new("-dc"), &packed]);
            assert!(output.status.success(), "xz: {}", String::from_utf8_lossy(&output.stderr));
            std::fs::write(&plain, output.stdout).expect("room for the image");
        } else {
            std::fs::copy(&packed, &plain).expect("room for the image");
        }
        let path = if self.is_dump { dir.path().join("disk.img") } else { plain.clone() };
        if self.is_dump {
            tool::stdout("btrfs-image", [Path::new("-r"), &plain, &path]);
        }
        Unpacked { _dir: dir, path }
    }
}
