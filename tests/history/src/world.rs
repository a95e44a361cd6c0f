//! A mounted file system that a history works on, and everything below it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::fs::files::{self, Act, Files};
use crate::fs::ioctl;
use crate::ground::Ground;
use crate::rng::Rng;
use crate::tool;

/// Attempts to unmount a file system that is still in use.
const UNMOUNT_ATTEMPTS: u32 = 100;
/// Background work rests this long between two steps, so that the commits are not one large one.
const BREATH: Duration = Duration::from_millis(3);

/// A file system, mounted most of the time, and the state of the history.
pub struct World {
    /// The history's random numbers.
    pub rng: Rng,
    /// What files are filled with.
    pub pool: Arc<Vec<u8>>,
    /// Subvolumes and snapshots there are, by path.
    pub volumes: Vec<PathBuf>,
    /// Options of the next mount.
    pub options: String,
    /// Steps taken so far.
    pub steps: u64,
    ground: Box<dyn Ground>,
    /// Commits that were asked for.
    asked: u64,
    is_mounted: bool,
    log: File,
    next_name: u64,
}

impl World {
    /// The world on `ground`, not mounted yet. Operations are logged in `dir`.
    ///
    /// # Errors
    /// When the log can't be made.
    pub fn new(dir: &Path, ground: Box<dyn Ground>, mut rng: Rng, options: String) -> Result<Self> {
        let log = File::create(dir.join("operations.log")).context("can't make the log of operations")?;
        let pool = files::pool(&mut rng);
        Ok(World {
            rng,
            pool,
            volumes: Vec::new(),
            options,
            steps: 0,
            ground,
            asked: 0,
            is_mounted: false,
            log,
            next_name: 0,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.ground.mount_point()
    }

    /// The block device.
    #[must_use]
    pub fn device(&self) -> &Path {
        self.ground.device()
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ground.size()
    }

    /// Commits that the witness has seen; where it is out of sight, commits that were asked for.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.ground.commits().unwrap_or(self.asked)
    }

    /// Makes reads from the disk slow, or fast again with 0.
    pub fn slow_down(&mut self, milliseconds: u64) {
        self.ground.slow_down(milliseconds);
        self.note(&format!("reads take {milliseconds} ms"));
    }

    /// A path that hasn't been used.
    pub fn new_path(&mut self, prefix: &str) -> PathBuf {
        self.next_name += 1;
        self.root().join(format!("{prefix}{}", self.next_name))
    }

    /// Writes down what is done; with that and the seed the run can be followed.
    pub fn note(&mut self, what: &str) {
        let commits = self.commits();
        let _ = writeln!(self.log, "{commits} {what}");
    }

    /// Notes the outcome of an operation that may fail: full disks, files that are gone and the like are part of
    /// the work. What may not fail is that the file system stays writable, see [`World::is_well`].
    pub fn tried<T>(&mut self, what: &str, outcome: io::Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.note(what);
                Some(value)
            }
            Err(error) => {
                self.note(&format!("{what}: {error}"));
                None
            }
        }
    }

    /// Runs `btrfs` with arguments between blanks, `@` standing for the mount point; may fail.
    pub fn btrfs(&mut self, line: &str) -> bool {
        let root = self.root().display().to_string();
        let arguments: Vec<String> = line.split_whitespace().map(|word| word.replace('@', &root)).collect();
        let outcome =
            tool::stdout("btrfs", &arguments).map_err(|error| io::Error::other(format!("{error:#}")));
        self.tried(&format!("btrfs {line}"), outcome).is_some()
    }

    /// Starts `btrfs` and doesn't wait.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_btrfs(&mut self, line: &str) -> Result<Child> {
        let root = self.root().display().to_string();
        self.note(&format!("btrfs {line} &"));
        let mut command = Command::new("btrfs");
        command.args(line.split_whitespace().map(|word| word.replace('@', &root)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("can't run btrfs")
    }

    /// Writes out everything and commits, or commits only what is there.
    ///
    /// # Errors
    /// When it fails.
    pub fn commit(&mut self) -> Result<()> {
        let root = File::open(self.root())?;
        let (what, how): (_, fn(&File) -> io::Result<()>) = match self.rng.below(4) {
            0 => ("commit", ioctl::commit),
            1 => ("btrfs sync", ioctl::sync_and_clean),
            _ => ("sync", ioctl::sync),
        };
        let outcome = how(&root);
        self.asked += 1;
        self.tried(what, outcome).context("a commit failed")
    }

    /// Mounts it with the current options.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mount(&mut self) -> Result<()> {
        let options = self.options.clone();
        self.note(&format!("mount -o {options}"));
        let (device, root) = (tool::utf8(self.device())?, tool::utf8(self.root())?);
        tool::stdout("mount", &["-t", "btrfs", "-o", &options, device, root])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// When it stays in use.
    pub fn unmount(&mut self) -> Result<()> {
        self.note("umount");
        let mut said = String::new();
        for _ in 0..UNMOUNT_ATTEMPTS {
            match tool::stdout("umount", &[self.root()]) {
                Ok(_) => {
                    self.is_mounted = false;
                    return Ok(());
                }
                Err(error) => said = format!("{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("can't unmount: {said}")
    }

    /// Unmounts and mounts again.
    ///
    /// # Errors
    /// When it fails.
    pub fn remount(&mut self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Cuts the power, and mounts what is left of it after a while.
    ///
    /// # Errors
    /// When what is left can't be mounted.
    pub fn cut_power(&mut self, backdrop: Option<Backdrop>) -> Result<()> {
        let mut rng = self.rng.fork();
        let cut = self.ground.cut(&mut rng)?;
        self.note(&format!("power cut: {} of {} unflushed sectors lost", cut.lost, cut.unflushed));
        drop(backdrop);
        self.unmount()?;
        self.ground.power_on()?;
        self.mount().context("after a power cut")
    }

    /// Whether the run can go on: nobody disagrees, and the file system is writable.
    ///
    /// # Errors
    /// What is wrong.
    pub fn is_well(&self) -> Result<()> {
        if let Some(failure) = self.ground.failure() {
            bail!("{failure}");
        }
        if self.is_mounted {
            let mounts = fs::read_to_string("/proc/mounts")?;
            let root = tool::utf8(self.root())?;
            let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(root));
            let options =
                line.and_then(|line| line.split(' ').nth(3)).context("it isn't mounted any more")?;
            if options.split(',').any(|option| option == "ro") {
                bail!("the file system has gone read-only: see dmesg");
            }
        }
        Ok(())
    }

    /// Work on the files of `dir`.
    pub fn files(&mut self, dir: &Path, count: u64, largest: u64) -> Files {
        let rng = self.rng.fork();
        Files::new(dir, count, largest, &self.pool, rng)
    }

    /// Does `times` of `acts` on some files of `dir`.
    ///
    /// # Errors
    /// None of the work itself.
    pub fn churn(&mut self, dir: &Path, acts: &[Act], times: u64) -> Result<()> {
        let mut files = self.files(dir, 30, 400 << 10);
        let failed = (0..times).filter(|_| files.act(acts).is_err()).count();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.note(&format!("churn {name}: {times} acts, {failed} failed"));
        Ok(())
    }

    /// Starts to work on the files of `dirs`, one thread each, and to commit every `interval`.
    pub fn backdrop(
        &mut self,
        dirs: &[PathBuf],
        acts: &'static [Act],
        interval: Option<Duration>,
    ) -> Backdrop {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for dir in dirs {
            let mut files = self.files(dir, 30, 300 << 10);
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = files.act(acts);
                    std::thread::sleep(BREATH);
                }
            }));
        }
        if let (Some(interval), Ok(root)) = (interval, File::open(self.root())) {
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = ioctl::commit(&root);
                    std::thread::sleep(interval);
                    let _ = ioctl::sync_and_clean(&root);
                    std::thread::sleep(interval);
                }
            }));
        }
        Backdrop { stop, threads }
    }

    /// A new subvolume.
    pub fn create_volume(&mut self) -> Option<PathBuf> {
        let path = self.new_path("v");
        let outcome = ioctl::create_subvolume(&path);
        self.tried(&format!("subvolume {}", path.display()), outcome)?;
        self.volumes.push(path.clone());
        Some(path)
    }

    /// A new snapshot of `of`.
    pub fn snapshot(&mut self, of: &Path, read_only: bool) -> Option<PathBuf> {
        let path = self.new_path(if read_only { "r" } else { "s" });
        let outcome = ioctl::snapshot(of, &path, read_only);
        self.tried(&format!("snapshot {} {}", of.display(), path.display()), outcome)?;
        if !read_only {
            self.volumes.push(path.clone());
        }
        Some(path)
    }

    /// Deletes any one subvolume but the first, if there is one.
    pub fn delete_some_volume(&mut self) {
        if self.volumes.len() > 1 {
            let index = self.rng.between(1, self.volumes.len() as u64 - 1) as usize;
            let path = self.volumes.swap_remove(index);
            let outcome = ioctl::delete_subvolume(&path);
            self.tried(&format!("delete {}", path.display()), outcome);
        }
    }

    /// Any subvolume; the root where there is none.
    pub fn some_volume(&mut self) -> PathBuf {
        if self.volumes.is_empty() { self.root().to_owned() } else { self.rng.pick(&self.volumes).clone() }
    }

    /// Waits a random time up to `milliseconds`.
    pub fn wait(&mut self, milliseconds: u64) {
        std::thread::sleep(Duration::from_millis(self.rng.between(1, milliseconds)));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = self.unmount()
        {
            eprintln!("history: {error:#}");
        }
    }
}

/// Work in the background, until it is dropped.
pub struct Backdrop {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Backdrop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
