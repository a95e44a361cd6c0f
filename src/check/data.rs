//! Compares file data with its checksums, on all cores.

use std::sync::{Mutex, PoisonError};

use parser::map::Physical;
use rayon::iter::{ParallelBridge as _, ParallelIterator as _};
use shadow::space::data::{self, DataSource, Piece};
use shadow::violation::Violation;
use shadow::{Forest, Geometry, ReadError};

use crate::capture::FailedWrites;
use crate::check::Progress;
use crate::image::Image;

/// Violations that are listed.
const LISTED: usize = 4096;

/// File data of one device, in an image.
pub struct ImageData<'a> {
    image: &'a dyn Image,
    devid: u64,
    failed: Option<&'a FailedWrites>,
}

impl<'a> ImageData<'a> {
    /// Reads from `image`.
    #[must_use]
    pub fn new(image: &'a dyn Image, geometry: &Geometry) -> Self {
        ImageData { image, devid: geometry.devid, failed: None }
    }

    /// The same where it is known which writes failed.
    #[must_use]
    pub fn without(mut self, failed: &'a FailedWrites) -> Self {
        self.failed = Some(failed);
        self
    }
}

impl DataSource for ImageData<'_> {
    fn read_data(&self, place: Physical, buffer: &mut [u8]) -> Result<(), ReadError> {
        let Physical { devid, offset } = place;
        if devid != self.devid {
            return Err(ReadError::ForeignDevice(devid));
        }
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.image.len()) {
            return Err(ReadError::OutOfBounds { devid, offset });
        }
        self.image.read_at(buffer, offset).map_err(|error| ReadError::Io(error.to_string()))
    }

    fn write_failed(&self, place: Physical, len: u64) -> bool {
        place.devid == self.devid && self.failed.is_some_and(|failed| failed.touch(place.offset, len))
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct DataReport {
    /// Data that does not have its checksum, by address.
    pub violations: Vec<Violation>,
    /// What could not be read.
    pub unknown: Vec<String>,
}

impl DataReport {
    fn take(&mut self, outcome: Result<Option<Violation>, String>) {
        match outcome {
            Ok(found) if self.violations.len() < LISTED => self.violations.extend(found),
            Err(reason) if self.unknown.len() < LISTED => self.unknown.push(reason),
            _ => {}
        }
    }

    fn sorted(mut self) -> Self {
        self.violations.sort_by_key(|violation| violation.bytenr);
        self.unknown.sort();
        self.unknown.dedup();
        self
    }
}

/// All data that has checksums, every copy, stripe by stripe as they lie on the devices.
pub(super) fn verify_all(forest: Forest<'_>, source: &dyn DataSource, progress: &dyn Progress) -> DataReport {
    let mut report = DataReport::default();
    if let Some(reason) = data::obstacle(&forest) {
        report.unknown.push(reason);
        return report;
    }
    let (stripes, unknown) = data::stripes(&forest.snapshot.chunks);
    report.unknown = unknown;
    progress.begin("data", stripes.len() as u64);
    for stripe in &stripes {
        match data::pieces(forest, stripe) {
            Ok(pieces) => verify(forest, pieces, source, &mut report),
            Err(problem) => report.unknown.push(format!("file data: {problem}")),
        }
        progress.advance(1);
    }
    progress.end();
    report.sorted()
}

/// The data that a commit has given checksums to.
#[must_use]
pub fn verify_fresh(old: Forest<'_>, new: Forest<'_>, source: &dyn DataSource) -> DataReport {
    let mut report = DataReport::default();
    match data::fresh(old, new) {
        Ok((pieces, unknown)) => {
            report.unknown = unknown;
            verify(new, pieces, source, &mut report);
        }
        Err(problem) => report.unknown.push(format!("file data: {problem}")),
    }
    report.sorted()
}

/// Workers take the pieces in their order, so that a disk is read from front to back.
fn verify(forest: Forest<'_>, pieces: Vec<Piece>, source: &dyn DataSource, report: &mut DataReport) {
    let found = Mutex::new(report);
    pieces.into_iter().par_bridge().for_each(|piece| {
        let outcome = piece.verify(forest, source);
        if !matches!(outcome, Ok(None)) {
            found.lock().unwrap_or_else(PoisonError::into_inner).take(outcome);
        }
    });
}
