//! A guest that has turned its write cache off, and the processes that come and go under it.

use crate::guest::Guest;
use crate::load::Load;
use crate::process::Service;
use crate::{ENGINES, catch};
use replay::rng::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guests {
    Idle,
    /// The virtual machine is stopped, and nothing is in flight.
    Stopped,
    /// Requests are in flight.
    Busy,
}

#[test]
fn a_write_cache_that_is_off_stays_off_whatever_becomes_of_the_process() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(64 << 20).unwrap();
    let mut rng = Rng::new(7);
    let (mut service, mut guest) = (Service::new(image.path()), Guest::new());
    let mut load = Load::new(1, 0, std::iter::empty());
    service.start(&[]);
    guest.connect(&service.socket());
    assert!(guest.has_write_cache());
    guest.turn_write_cache(false);
    let states = [Guests::Stopped, Guests::Idle, Guests::Busy, Guests::Stopped];
    // Each after each, and twice in a row.
    let ends =
        states.into_iter().flat_map(|state| [(state, true), (state, true), (state, false), (state, false)]);
    for (end, (state, killed)) in ends.enumerate() {
        load.run(&mut guest, 20);
        load.drain(&mut guest);
        match state {
            Guests::Idle => {}
            Guests::Stopped => guest.stop(),
            Guests::Busy if killed => assert!(catch(&service, &mut load, &mut guest, &mut rng) > 0),
            Guests::Busy => load.fill(&mut guest),
        }
        if killed {
            service.kill();
        } else {
            service.terminate();
            assert_eq!(service.recorded(), 0);
        }
        guest.lose_connection();
        service.start(ENGINES[end % ENGINES.len()]);
        guest.connect(&service.socket());
        assert!(!guest.has_write_cache(), "{state:?}, killed: {killed}");
        load.take(&mut guest);
        load.drain(&mut guest);
        load.assert_image(image.as_file());
    }
    // The guest is gone, and the record is of no other.
    service.kill();
    guest.lose_connection();
    service.start(&[]);
    let mut other = Guest::new();
    other.connect(&service.socket());
    other.flush();
    assert!(other.has_write_cache());
    other.disconnect();
    service.terminate();
    assert!(!service.record().exists());
}
