//! Images made with `mkfs.btrfs` and filled through a loop mount on the host's kernel.
//!
//! Each mount lives in a mount namespace of its own, which ends with the shell that works in it: however a test ends,
//! the kernel takes the mount down and, since the loop device is of the autoclear kind, frees the device too.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::tool;

/// What scripts may call besides programs.
///
/// `until_deleted` waits until deleted subvolumes are gone. `btrfs subvolume sync` alone may wait for the whole commit
/// interval of the mount: it only looks on, and the kernel's cleaner sleeps until the transaction thread wakes it, which
/// of all syncs only `btrfs filesystem sync` brings about. (`subvolume delete -c` does, too, unless another process
/// has committed first: every sync on the machine may.)
pub(crate) const FUNCTIONS: &str = r#"
    until_deleted() {
        tries=0
        btrfs filesystem sync .
        until timeout 2 btrfs subvolume sync . > /dev/null; do
            tries=$((tries + 1))
            if [ $tries -ge 60 ]; then echo "deleted subvolumes are still there" >&2; exit 1; fi
            btrfs filesystem sync .
        done
    }
"#;

/// How an image is made.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name for messages.
    pub name: &'static str,
    /// Arguments of `mkfs.btrfs`, beside the image.
    pub mkfs: Vec<String>,
    /// Options of `mount`.
    pub mount: String,
    /// Size of the device in MiB.
    pub size_mib: u64,
}

impl Spec {
    /// An image of 512 MiB; `mkfs` holds arguments of `mkfs.btrfs` between blanks.
    #[must_use]
    pub fn new(name: &'static str, mkfs: &str) -> Self {
        let mkfs = mkfs.split_whitespace().map(str::to_owned).collect();
        Spec { name, mkfs, mount: String::from("commit=300"), size_mib: 512 }
    }

    /// The same with mount options of its own.
    #[must_use]
    pub fn mounted(mut self, options: &str) -> Self {
        self.mount = options.to_owned();
        self
    }

    /// The same with another size.
    #[must_use]
    pub fn sized(mut self, mib: u64) -> Self {
        self.size_mib = mib;
        self
    }

    /// Makes the file system, empty.
    ///
    /// # Panics
    /// When `mkfs.btrfs` fails or is missing.
    #[must_use]
    pub fn mkfs(&self) -> Image {
        let dir = TempDir::with_prefix("btrfs-shadow-").expect("a temporary directory");
        let path = dir.path().join("disk.img");
        let file = std::fs::File::create(&path).expect("an image file");
        file.set_len(self.size_mib << 20).expect("room for a sparse image");
        let mut args = vec!["-q".to_owned(), "-f".to_owned()];
        args.extend(self.mkfs.iter().cloned());
        args.push(path.to_str().expect("a plain path").to_owned());
        tool::stdout("mkfs.btrfs", args);
        Image { dir, path, mount: self.mount.clone() }
    }

    /// Makes the file system and runs `script` in it: see [`Image::run`].
    #[must_use]
    pub fn build(&self, script: &str) -> Image {
        let image = self.mkfs();
        image.run(script);
        image
    }
}

/// An image file in a temporary directory of its own, removed with the value.
#[derive(Debug)]
pub struct Image {
    dir: TempDir,
    path: PathBuf,
    mount: String,
}

impl Image {
    /// The image file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A copy in a directory of its own; holes stay holes.
    ///
    /// # Panics
    /// When the copy cannot be made.
    #[must_use]
    pub fn copy(&self) -> Image {
        let dir = TempDir::with_prefix("btrfs-shadow-").expect("a temporary directory");
        let path = dir.path().join("disk.img");
        copy_sparse(&self.path, &path);
        Image { dir, path, mount: self.mount.clone() }
    }

    /// Mounts the image, runs a shell script in its root directory and unmounts it. In the script, a command that
    /// fails ends it. `until_deleted` in it waits until deleted subvolumes are gone.
    ///
    /// # Panics
    /// When mounting or the script fails.
    pub fn run(&self, script: &str) {
        let output = self.command(script).output().expect("unshare(1) and sh");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "script on {} failed: {errors}", self.path.display());
    }

    /// Like [`Image::run`], without waiting for the end.
    ///
    /// # Panics
    /// When the shell cannot be started.
    #[must_use]
    pub fn start(&self, script: &str) -> Child {
        self.command(script).spawn().expect("unshare(1) and sh")
    }

    /// Options of `mount`.
    pub(crate) fn mount_options(&self) -> &str {
        &self.mount
    }

    /// Where the image is mounted, as seen by the script.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn command(&self, script: &str) -> Command {
        let mount_point = self.mount_point();
        std::fs::create_dir_all(&mount_point).expect("a mount point");
        let script = format!(
            "{FUNCTIONS}mount -o \"loop,$3\" \"$1\" \"$2\"\ncd \"$2\"\n{script}\ncd /\numount \"$2\"\n"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", &script, "sh"]);
        command.arg(&self.path).arg(&mount_point).arg(&self.mount);
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// Copies a file and leaves its holes.
///
/// # Panics
/// When `cp` fails.
pub fn copy_sparse(from: &Path, to: &Path) {
    tool::stdout("cp", [Path::new("--sparse=always"), Path::new("--reflink=auto"), from, to]);
}
