//! The backend is killed under load and started again, and the guest goes on: nothing that was acknowledged is lost, no
//! request is lost, answered twice or left hanging, and the guest's commits are verified on.

mod cache;
mod guest;
mod load;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest::Guest;
use load::Load;
use process::Service;
use replay::rng::Rng;
use replay::{History, Plan, Writes};
use testkit::Spec;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What processes are started with, in turn.
const ENGINES: [&[&str]; 5] = [
    &[],
    &["--io-engine", "sync"],
    &["--io-engine", "io-uring", "--poll-us", "0", "--on-violation", "reject"],
    &["--direct-io"],
    &["--direct-io", "--poll-us", "0"],
];

/// Attempts to catch the backend with requests in flight.
const ATTEMPTS: usize = 500;

/// Kills, from the environment for the script that makes many.
fn kills() -> usize {
    std::env::var("KILLS").map_or(20, |kills| kills.parse().expect("KILLS is a number"))
}

fn history(steps: usize) -> History {
    let script = |n: usize| match n % 4 {
        0 => format!("mkdir d{n}; for i in $(seq 40); do echo $i-{n} > d{n}/f$i; done"),
        1 => format!("head -c 300000 /dev/urandom > big{n}; cp --reflink=always big{n} clone{n}"),
        2 => format!("btrfs -q subvolume snapshot . snap{n}"),
        _ => format!("rm d{}/f*3; touch d{}/*; rm clone{}", n - 3, n - 3, n - 2),
    };
    replay::record_without_holes(&Plan {
        spec: Spec::new("killed", "-n 16384 -m dup").mounted("commit=300,nodiscard"),
        prepare: "for i in $(seq 300); do echo $i > file$i; done".to_owned(),
        scripts: (0..steps).map(|n| (format!("step {n}"), script(n))).collect(),
        live: false,
    })
}

/// A disk with the file system of a history, and room behind it.
struct Scene {
    history: History,
    size: u64,
}

impl Scene {
    fn new(steps: usize) -> Self {
        let history = history(steps);
        let size = std::fs::metadata(history.base.path()).unwrap().len();
        let file = File::options().write(true).open(history.base.path()).unwrap();
        file.set_len(size + (64 << 20)).unwrap();
        Self { history, size }
    }

    fn image(&self) -> &Path {
        self.history.base.path()
    }

    fn load(&self, seed: u64) -> Load {
        Load::new(seed, self.size, self.history.steps.iter().map(Writes::from))
    }

    /// All commits are there, byte for byte, and `btrfs check` agrees.
    fn assert_committed(&self) {
        let image = File::open(self.image()).unwrap();
        let mut expected = BTreeMap::new();
        for change in self.history.steps.iter().flat_map(replay::Step::changes) {
            for (n, page) in change.bytes.chunks(4096).enumerate() {
                expected.insert(change.offset + n as u64 * 4096, page);
            }
        }
        for (offset, page) in expected {
            let mut found = vec![0; page.len()];
            image.read_exact_at(&mut found, offset).unwrap();
            assert!(found == page, "the file system at {offset}");
        }
        let check = Command::new("btrfs").arg("check").arg(self.image()).output().expect("btrfs check");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    }
}

/// Stops the backend with requests in flight, if that can be had. How many there are.
fn catch(service: &Service, load: &mut Load, guest: &mut Guest, rng: &mut Rng) -> usize {
    for _ in 0..ATTEMPTS {
        load.fill(guest);
        std::thread::sleep(Duration::from_micros(rng.below(400) as u64));
        service.freeze();
        let recorded = service.recorded();
        if recorded > 0 {
            return recorded;
        }
        service.thaw();
        load.run(guest, 1);
    }
    0
}

/// Every commit that there is an event about was clean, and was written; their generations.
fn assert_clean(service: &Service) -> BTreeSet<u64> {
    let events = service.events();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    assert_eq!(of("violation"), Vec::<&serde_json::Value>::new());
    for commit in of("commit") {
        assert_eq!(
            (&commit["verdict"], &commit["policy"]),
            (&"clean".into(), &"written".into()),
            "{commit:#}"
        );
    }
    of("commit").iter().map(|commit| commit["generation"].as_u64().expect("a generation")).collect()
}

/// What was going on at the kills.
#[derive(Default)]
struct Tally {
    /// Kills with requests in flight, and how many those were.
    kills: usize,
    requests: usize,
    /// Kills in the middle of a commit.
    committing: usize,
    /// Kills that came when nothing was in flight: those are made again.
    idle: usize,
}

/// Both the writes and the commits go on until the last kill, and each kill that counts has requests in flight.
#[test]
fn killed_under_load() {
    let kills = kills();
    let scene = Scene::new(kills + kills / 5);
    let steps = &scene.history.steps;
    let image = File::open(scene.image()).unwrap();
    let mut load = scene.load(1);
    let mut rng = Rng::new(2);
    let (mut service, mut guest) = (Service::new(scene.image()), Guest::new());
    service.start(ENGINES[0]);
    guest.connect(&service.socket());
    let mut tally = Tally::default();
    while tally.kills < kills {
        // Some are always left for the kills to come.
        load.allow_commits(steps.len() * (tally.kills + 1) / (kills + 1));
        load.run(&mut guest, rng.below(150));
        // Now and then wherever it is, and else stopped first, so as to be sure.
        if rng.below(4) == 0 {
            load.fill(&mut guest);
            std::thread::sleep(Duration::from_micros(rng.below(400) as u64));
        } else {
            catch(&service, &mut load, &mut guest, &mut rng);
        }
        service.kill();
        let requests = service.recorded();
        guest.lose_connection();
        load.take(&mut guest);
        load.assert_image(&image);
        assert!(!load.commits_done(), "the load was over before the last kill");
        tally.committing += usize::from(load.is_committing() && requests > 0);
        tally.kills += usize::from(requests > 0);
        tally.requests += requests;
        tally.idle += usize::from(requests == 0);
        assert!(tally.idle <= kills, "{} kills with nothing in flight", tally.idle);
        service.start(ENGINES[(tally.kills + tally.idle) % ENGINES.len()]);
        guest.connect(&service.socket());
        if rng.below(2) == 0 {
            load.drain(&mut guest);
            load.assert_image(&image);
        }
    }
    load.allow_commits(usize::MAX);
    while !load.commits_done() {
        load.run(&mut guest, 1);
    }
    load.drain(&mut guest);
    guest.disconnect();
    service.terminate();
    load.assert_image(&image);
    scene.assert_committed();
    // Each is judged, and told, before its super block is written.
    let commits = assert_clean(&service);
    assert_eq!(commits, steps.iter().map(|step| step.to).collect());
    assert!(tally.committing * 4 > kills, "{} of {kills} kills in the middle of a commit", tally.committing);
    assert!(!service.record().exists());
    let Tally { kills, requests, committing, idle } = tally;
    println!(
        "{kills} kills, all with requests in flight ({requests}), {committing} in the middle of a commit, and {idle} besides with \
         nothing in flight; {} requests answered, {} of {} commits verified, nothing lost",
        load.answered,
        commits.len(),
        steps.len()
    );
}

/// A new process takes over from one that was told to end: nothing is in flight, and the guest doesn't notice.
#[test]
fn replaced_under_load() {
    let scene = Scene::new(4);
    let image = File::open(scene.image()).unwrap();
    let mut load = scene.load(3);
    let (mut service, mut guest) = (Service::new(scene.image()), Guest::new());
    for replacement in 0..6 {
        service.start(ENGINES[replacement % ENGINES.len()]);
        guest.connect(&service.socket());
        load.run(&mut guest, 100);
        load.fill(&mut guest);
        let code = service.terminate();
        assert!(code == 0 || code == 3, "exit code {code}: {}", service.stderr());
        assert!(!service.record().exists(), "something was left in flight");
        guest.lose_connection();
        load.take(&mut guest);
        load.assert_image(&image);
    }
    service.start(&[]);
    guest.connect(&service.socket());
    while !load.commits_done() {
        load.run(&mut guest, 1);
    }
    load.drain(&mut guest);
    guest.disconnect();
    service.terminate();
    scene.assert_committed();
    assert_eq!(assert_clean(&service).len(), scene.history.steps.len());
}

/// What a record says of one guest's ring is never applied to another's, nor is what was scribbled into it.
#[test]
fn a_record_that_is_wrong_is_not_followed() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(64 << 20).unwrap();
    let mut rng = Rng::new(5);
    let mut service = Service::new(image.path());
    for wrong in 0..12 {
        service.start(&[]);
        let (mut guest, mut load) = (Guest::new(), Load::new(wrong, 0, std::iter::empty()));
        load.forget(image.as_file());
        guest.connect(&service.socket());
        load.run(&mut guest, 50);
        assert!(catch(&service, &mut load, &mut guest, &mut rng) > 0);
        service.kill();
        let mut record = std::fs::read(service.record()).unwrap();
        let scribbles = [0, 1, 20, 1000, 20000, 0][wrong as usize % 6];
        for _ in 0..scribbles {
            // The rings' places stay as they are now and then, and so do small numbers.
            let queue = 4096 + rng.below(2) * 2064 * 8;
            let at = queue + [rng.below(16 * 8), rng.below(2064 * 8)][rng.below(2)];
            record[at] = rng.number() as u8;
        }
        record.truncate(if wrong % 6 == 5 { 5000 } else { record.len() });
        std::fs::write(service.record(), &record).unwrap();
        let before = std::fs::read(image.path()).unwrap();
        let mut other = if wrong % 2 == 0 { Guest::new() } else { guest };
        let is_same = wrong % 2 == 1;
        service.start(&[]);
        other.lose_connection();
        other.connect(&service.socket());
        if is_same {
            // Its requests may be lost, for nobody knows of them any more; the queues are in order, and the process lives.
            other.disconnect_anyhow();
        } else {
            other.flush();
            assert!(
                std::fs::read(image.path()).unwrap() == before,
                "something was written for another guest"
            );
            other.disconnect();
        }
        assert_eq!(service.terminate(), 3, "{}", service.stderr());
        assert!(!service.stderr().contains("panic"), "{}", service.stderr());
        let _ = std::fs::remove_file(service.record());
    }
}

#[test]
fn a_file_that_is_no_record_is_left_alone() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let mut service = Service::new(image.path());
    std::fs::write(service.record(), "somebody's diary").unwrap();
    service.start(&[]);
    assert_eq!(service.wait(), 2);
    assert!(service.stderr().contains("socket.inflight"), "{}", service.stderr());
    assert_eq!(std::fs::read(service.record()).unwrap(), b"somebody's diary");
}

/// Generation of the primary super block in the image.
fn generation(image: &File) -> u64 {
    let mut superblock = vec![0; replay::history::SUPER_SIZE];
    image.read_exact_at(&mut superblock, replay::history::SUPERS[0]).unwrap();
    replay::history::generation(&superblock)
}

/// A commit that is paused is so in the next process, too; one that was refused is never accepted because another process
/// is asked.
#[test]
fn what_was_not_accepted_is_not_by_another_process() {
    let scene = Scene::new(1);
    let image = File::open(scene.image()).unwrap();
    let (mut service, mut guest) = (Service::new(scene.image()), Guest::new());
    service.start(&["--plant-fault", "extent-refs", "--on-violation", "pause"]);
    guest.connect(&service.socket());
    let first = Writes::from(&scene.history.steps[0]);
    let good = scene.history.steps[0].from;
    for change in &first.blocks {
        assert_eq!(guest.write(change.offset, &change.bytes), 0);
    }
    guest.flush();
    let superblock = &first.supers[0];
    let at = (superblock.offset, superblock.bytes.len());
    guest.submit((1, 0), guest::OUT, at, &superblock.bytes, false);
    service.wait_for_pause();
    for _ in 0..2 {
        service.freeze();
        assert_eq!(service.recorded(), 1);
        service.kill();
        guest.lose_connection();
        service.start(&["--on-violation", "pause"]);
        guest.connect(&service.socket());
        service.wait_for_pause();
        assert_eq!(generation(&image), good);
    }
    assert!(service.ctl(&["reject"]).status.success());
    assert_eq!(guest.wait_for_answers(), [(1, 0, 1)], "an I/O error");
    service.kill();
    guest.lose_connection();
    service.start(&["--on-violation", "reject"]);
    guest.connect(&service.socket());
    assert_eq!(guest.write(superblock.offset, &superblock.bytes), 1, "it is as wrong as before");
    assert_eq!(generation(&image), good);
    guest.disconnect();
    assert_eq!(service.terminate(), 1);
    let check = Command::new("btrfs").arg("check").arg(scene.image()).output().expect("btrfs check");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
