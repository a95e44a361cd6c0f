//! Plays each target's seeds, inputs that once failed (`regressions/TARGET/`), and mutations of both that are the same in
//! every run: what `vm-scripts/fuzz` does at length.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{LazyLock, Mutex, Once, PoisonError};
use std::time::Duration;

use replay::rng::Rng;

/// Longer than any input takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Mutations of each target's inputs.
const MUTATIONS: usize = 1500;

type Seeds = std::collections::BTreeMap<&'static str, Vec<Vec<u8>>>;

static SEEDS: LazyLock<Seeds> = LazyLock::new(fuzz::seeds::all);

/// What is allocated is counted for the whole process: one target at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Panics in any thread: a queue's worker contains its own.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
}

fn regressions(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target);
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

/// Changes some bytes, adds some, takes some away.
fn scrambled(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.below(6) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = rng.below(bytes.len());
        match rng.below(6) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
            2 => bytes[at] = rng.number() as u8,
            3 => bytes.insert(at, rng.number() as u8),
            4 => drop(bytes.remove(at)),
            _ => {
                let len = rng.below(16).min(bytes.len() - at);
                let copied = bytes[at..at + len].to_vec();
                let to = rng.below(bytes.len() + 1);
                bytes.splice(to..to, copied);
            }
        }
    }
}

/// Plays all inputs; an input that fails is written to a file that the message names.
fn play(target: &'static str, run: fn(&[u8]), mutate: fn(&[u8], &mut Rng) -> Vec<u8>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    count_panics();
    let mut inputs = SEEDS[target].clone();
    assert!(inputs.len() > 5, "{target}: only {} seeds", inputs.len());
    inputs.extend(regressions(target));
    let mut rng = Rng::new(1);
    let mut next = inputs.clone().into_iter();
    for number in 0..inputs.len() + MUTATIONS {
        let input = next.next().unwrap_or_else(|| mutate(&inputs[rng.below(inputs.len())], &mut rng));
        let before = PANICS.load(Ordering::SeqCst);
        let (done, ended) = channel();
        let played = input.clone();
        let player = std::thread::spawn(move || {
            run(&played);
            done.send(())
        });
        let outcome = ended.recv_timeout(PATIENCE);
        if outcome != Err(RecvTimeoutError::Timeout) {
            let _ = player.join();
        }
        if outcome.is_err() || PANICS.load(Ordering::SeqCst) != before {
            let file = std::env::temp_dir().join(format!("fuzz-{target}-{number}"));
            std::fs::write(&file, &input).unwrap();
            panic!("{target}: input {number} failed ({outcome:?}); it is in {}", file.display());
        }
    }
}

fn plain(input: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    scrambled(&mut bytes, rng);
    bytes
}

#[test]
fn parser() {
    play("parser", fuzz::parser::run, plain);
}

#[test]
fn shadow() {
    play("shadow", fuzz::shadow::run, |input, rng| {
        let mut scramble = Rng::new(rng.number());
        fuzz::shadow::mutate(input, rng, &mut |bytes| {
            for _ in 0..4 {
                let at = scramble.below(bytes.len());
                bytes[at] = scramble.number() as u8;
            }
        })
    });
}

#[test]
fn ring() {
    play("ring", fuzz::ring::run, plain);
}

/// What is bounded is bounded.
#[test]
fn too_much_memory_is_noticed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let take = |len: usize| {
        std::panic::catch_unwind(|| fuzz::memory::bounded(1 << 20, || std::hint::black_box(vec![1u8; len])))
    };
    assert!(take(1 << 19).is_ok());
    assert!(take(1 << 21).is_err());
}
