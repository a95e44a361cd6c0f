//! The device beside qemu-storage-daemon's vhost-user-blk export: the same client, the same kind of image, in turns.
//!
//! Both serve a btrfs whose data chunk is all one file without checksums, and the requests go to that chunk: all of
//! btrfs-shadow's verification is on, and nothing that is written is a violation. `DEVICE_BENCH_SECONDS` is how long
//! each measurement takes (1.5), `DEVICE_BENCH_ROUNDS` how often each is made (3), `DEVICE_BENCH_DIRECT=1` goes past the
//! page cache, `DEVICE_BENCH_ROWS` names the rows to be measured by parts of their names.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use testkit::{Session, Spec, tool};

use self::client::{Client, Queue};

// It can do more than is measured here.
#[allow(dead_code)]
#[path = "../tests/device/client.rs"]
mod client;

mod harness {
    /// Longer than any request takes.
    pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
}

/// What one measurement does.
#[derive(Debug, Clone, Copy)]
struct Row {
    name: &'static str,
    kind: Kind,
    block: usize,
    depth: usize,
    queues: usize,
    /// The goal: at least so many times the peer's IOPS.
    goal: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    RandomRead,
    RandomWrite,
    SequentialRead,
    SequentialWrite,
    /// Seven of ten are reads; every 64th request is a flush.
    Mix,
}

const fn row(name: &'static str, kind: Kind, block: usize, depth: usize, queues: usize, goal: f64) -> Row {
    Row { name, kind, block, depth, queues, goal }
}

const ROWS: [Row; 13] = [
    row("4K random read, depth 1, 1 queue", Kind::RandomRead, 4096, 1, 1, 1.0),
    row("4K random read, depth 32, 1 queue", Kind::RandomRead, 4096, 32, 1, 1.0),
    row("4K random read, depth 1, 2 queues", Kind::RandomRead, 4096, 1, 2, 1.0),
    row("4K random read, depth 32, 2 queues", Kind::RandomRead, 4096, 32, 2, 1.8),
    row("4K random write, depth 1, 1 queue", Kind::RandomWrite, 4096, 1, 1, 1.0),
    row("4K random write, depth 32, 1 queue", Kind::RandomWrite, 4096, 32, 1, 4.0),
    row("4K random write, depth 1, 2 queues", Kind::RandomWrite, 4096, 1, 2, 1.0),
    row("4K random write, depth 32, 2 queues", Kind::RandomWrite, 4096, 32, 2, 4.0),
    row("128K sequential read, depth 1", Kind::SequentialRead, 128 << 10, 1, 1, 1.0),
    row("128K sequential read, depth 8", Kind::SequentialRead, 128 << 10, 8, 1, 1.0),
    row("128K sequential write, depth 1", Kind::SequentialWrite, 128 << 10, 1, 1, 1.0),
    row("128K sequential write, depth 8", Kind::SequentialWrite, 128 << 10, 8, 1, 1.0),
    row("4K mix with flushes, depth 16", Kind::Mix, 4096, 16, 1, 1.0),
];

/// Queues that the peer offers; ours offers more.
const QUEUES: usize = 4;

fn main() -> ExitCode {
    let seconds = Duration::from_secs_f64(setting("DEVICE_BENCH_SECONDS", 1.5));
    let rounds = setting("DEVICE_BENCH_ROUNDS", 3.0) as usize;
    let direct = setting("DEVICE_BENCH_DIRECT", 0.0) != 0.0;
    let wanted = std::env::var("DEVICE_BENCH_ROWS").unwrap_or_default();
    let disks = [Disk::make(), Disk::make()];
    let servers = [Server::peer(&disks[0], direct), Server::ours(&disks[1], direct)];
    println!(
        "{:<37} {:>9} {:>9} {:>7}  {:>15} {:>15} {:>15}",
        if direct { "past the page cache" } else { "through the page cache" },
        "theirs/s",
        "ours/s",
        "ratio",
        "p50 us",
        "p99 us",
        "CPU us a request"
    );
    let mut missed = 0;
    for row in ROWS.iter().filter(|row| row.name.contains(&wanted)) {
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..rounds.max(1) {
            for (index, server) in servers.iter().enumerate() {
                settle(&disks);
                samples[index].push(measure(server, &disks[index].data, row, seconds));
            }
        }
        let [theirs, ours] = samples.map(median);
        let ratio = ours.iops / theirs.iops.max(1.0);
        let met = ratio >= row.goal && ours.cpu_us <= theirs.cpu_us;
        missed += usize::from(!met);
        println!(
            "{:<37} {:>9.0} {:>9.0} {ratio:>7.2}  {:>7.1}/{:<7.1} {:>7.1}/{:<7.1} {:>7.2}/{:<7.2} {}",
            row.name,
            theirs.iops,
            ours.iops,
            theirs.p50_us,
            ours.p50_us,
            theirs.p99_us,
            ours.p99_us,
            theirs.cpu_us,
            ours.cpu_us,
            if met { "" } else { "<- misses" }
        );
    }
    println!("pairs are theirs/ours, each the median of {rounds}; {missed} rows miss IOPS or CPU goals");
    ExitCode::SUCCESS
}

/// What was written before is on disk: whoever comes next doesn't pay for it.
fn settle(disks: &[Disk]) {
    for disk in disks {
        let file = std::fs::File::open(disk.image.path()).expect("the image");
        file.sync_data().expect("a disk that takes it");
    }
}

fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// An image with a large data chunk.
struct Disk {
    image: testkit::Image,
    /// Where the chunk is on the device.
    data: Range<u64>,
}

impl Disk {
    fn make() -> Disk {
        let image = Spec::new("device bench", "-n 16384 -m single -d single").sized(4096).mkfs();
        let mut session = Session::start(&image);
        session
            .run("touch f; chattr +C f; dd if=/dev/zero of=f bs=1M count=1200 status=none; sync -f .", || ());
        session.finish();
        let dump = tool::stdout("btrfs", ["inspect-internal", "dump-tree", "-t", "chunk", path(&image)]);
        let data = largest_data_chunk(&dump);
        assert!(data.end - data.start >= 128 << 20, "data chunk {data:?}");
        Disk { image, data }
    }
}

fn path(image: &testkit::Image) -> &str {
    image.path().to_str().expect("a plain path")
}

/// From the dump of a chunk tree: `length L ... type DATA|single` and, further on, `stripe 0 devid 1 offset P`.
fn largest_data_chunk(dump: &str) -> Range<u64> {
    let number = |line: &str, after: &str| -> Option<u64> {
        line.split_whitespace().skip_while(|word| *word != after).nth(1)?.parse().ok()
    };
    let (mut length, mut best) = (None, 0..0);
    for line in dump.lines() {
        if line.contains("type ") && line.contains("length ") {
            length = line.contains("DATA").then(|| number(line, "length")).flatten();
        } else if let (Some(len), Some(offset)) = (length, number(line, "offset"))
            && line.trim_start().starts_with("stripe 0")
        {
            if len > best.end - best.start {
                best = offset..offset + len;
            }
            length = None;
        }
    }
    best
}

/// A server that runs until it is dropped.
struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    fn ours(disk: &Disk, direct: bool) -> Server {
        let socket = disk.image.path().with_file_name("ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_btrfs-shadow"));
        command.arg("serve").arg("--quiet").arg("--blk-file").arg(disk.image.path());
        command.arg("--socket-path").arg(&socket).args(["--num-queues", "4"]);
        command.args(direct.then_some("--direct-io"));
        Server::start(command, socket)
    }

    fn peer(disk: &Disk, direct: bool) -> Server {
        let socket = disk.image.path().with_file_name("theirs");
        let cache = if direct { "on" } else { "off" };
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--object", "iothread,id=thread", "--blockdev"]);
        command.arg(format!(
            "driver=file,node-name=disk,filename={},aio=io_uring,cache.direct={cache},discard=unmap",
            path(&disk.image)
        ));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,iothread=thread,writable=on,num-queues={QUEUES},addr.type=unix,addr.path={}",
            socket.display()
        ));
        Server::start(command, socket)
    }

    fn start(mut command: Command, socket: PathBuf) -> Server {
        let mut process = command.stdout(Stdio::null()).spawn().expect("the server, which must be installed");
        let deadline = Instant::now() + harness::PATIENCE;
        while !socket.exists() {
            assert!(process.try_wait().expect("a process").is_none(), "the server ended: {command:?}");
            assert!(Instant::now() < deadline, "no socket: {command:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Server { process, socket }
    }

    /// CPU time of all its threads, the kernel's workers for it among them.
    fn cpu(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("its statistics");
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
        // SAFETY: asks for a number.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        Duration::from_secs_f64(ticks as f64 / per_second)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What one measurement found.
#[derive(Debug, Clone, Copy)]
struct Sample {
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

/// Each column's median.
fn median(samples: Vec<Sample>) -> Sample {
    let middle = |field: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Sample {
        iops: middle(|sample| sample.iops),
        p50_us: middle(|sample| sample.p50_us),
        p99_us: middle(|sample| sample.p99_us),
        cpu_us: middle(|sample| sample.cpu_us),
    }
}

fn measure(server: &Server, data: &Range<u64>, row: &Row, time: Duration) -> Sample {
    let mut client = Client::connect(Path::new(&server.socket), row.queues, row.depth * row.block);
    let before = server.cpu();
    let begun = Instant::now();
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
        let share = (data.end - data.start) / row.queues as u64 / (1 << 20) * (1 << 20);
        let threads: Vec<_> = client
            .queues
            .iter_mut()
            .enumerate()
            .map(|(index, queue)| {
                let start = data.start + index as u64 * share;
                scope.spawn(move || load(queue, start..start + share, row, time))
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client's thread")).collect()
    });
    let (took, cpu) = (begun.elapsed(), server.cpu().saturating_sub(before));
    latencies.sort_unstable();
    let at = |part: f64| latencies[(latencies.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    Sample {
        iops: latencies.len() as f64 / took.as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        cpu_us: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
    }
}

/// Keeps `depth` requests in flight; how long each took.
fn load(queue: &mut Queue, part: Range<u64>, row: &Row, time: Duration) -> Vec<Duration> {
    let mut numbers = 0x9e37_79b9_7f4a_7c15 ^ part.start;
    let mut next = 0u64;
    let blocks = (part.end - part.start) / row.block as u64;
    let mut submit = |queue: &mut Queue, tag: usize| {
        numbers ^= numbers << 13;
        numbers ^= numbers >> 7;
        numbers ^= numbers << 17;
        next += 1;
        let (random, slot) = (numbers >> 16, tag * row.block);
        let offset = |block: u64| part.start + block % blocks * row.block as u64;
        match row.kind {
            Kind::RandomRead => queue.submit_read(offset(random), slot, row.block, tag),
            Kind::RandomWrite => queue.submit_write(offset(random), slot, row.block, tag),
            Kind::SequentialRead => queue.submit_read(offset(next), slot, row.block, tag),
            Kind::SequentialWrite => queue.submit_write(offset(next), slot, row.block, tag),
            Kind::Mix if next.is_multiple_of(64) => queue.submit_flush(tag),
            Kind::Mix if numbers % 10 < 7 => queue.submit_read(offset(random), slot, row.block, tag),
            Kind::Mix => queue.submit_write(offset(random), slot, row.block, tag),
        }
    };
    let mut since = vec![Instant::now(); row.depth];
    let mut latencies = Vec::with_capacity(1 << 20);
    for tag in 0..row.depth {
        submit(queue, tag);
    }
    let mut in_flight = row.depth;
    let end = Instant::now() + time;
    while in_flight > 0 {
        let done = queue.wait_for_some(1, row.depth);
        let now = Instant::now();
        for (tag, result) in done {
            assert_eq!(result, 0, "a request failed");
            latencies.push(now - since[tag]);
            in_flight -= 1;
            if now < end {
                since[tag] = now;
                submit(queue, tag);
                in_flight += 1;
            }
        }
    }
    latencies
}
