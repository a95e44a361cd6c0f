//! Sets of addresses as ranges, and what two of them have not in common.

/// First address, and first past the end.
pub type Range = (u64, u64);

/// The addresses that lie in an odd number of ranges. Where something was added on one side and on the other too, an
/// even number says that they agree.
#[derive(Debug, Default)]
pub struct Toggles(Vec<u64>);

impl Toggles {
    /// Adds a range.
    pub fn add(&mut self, (start, end): Range) {
        if start < end {
            self.0.extend([start, end]);
        }
    }

    /// Adds ranges.
    pub fn extend(&mut self, ranges: impl IntoIterator<Item = Range>) {
        ranges.into_iter().for_each(|range| self.add(range));
    }

    /// What is left, in order; ranges that touch are one.
    #[must_use]
    pub fn finish(self) -> Vec<Range> {
        let mut ends = self.0;
        ends.sort_unstable();
        // Two that are the same cancel out.
        let mut odd: Vec<u64> = Vec::new();
        for end in ends {
            if odd.last() == Some(&end) {
                odd.pop();
            } else {
                odd.push(end);
            }
        }
        odd.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }
}

/// Sorts ranges and joins those that touch or overlap.
#[must_use]
pub fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ if start < end => joined.push((start, end)),
            _ => {}
        }
    }
    joined
}

/// What of `from` is not in `taken`; both as [`union`] makes them.
#[must_use]
pub fn subtract(from: &[Range], taken: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    let mut skip = 0;
    for &(start, end) in from {
        while taken.get(skip).is_some_and(|range| range.1 <= start) {
            skip += 1;
        }
        let mut at = start;
        for &(first, last) in taken.iter().skip(skip).take_while(|range| range.0 < end) {
            if at < first {
                left.push((at, first));
            }
            at = at.max(last);
        }
        if at < end {
            left.push((at, end));
        }
    }
    left
}

/// The part of `range` that lies within `bounds`; `None` where there is none.
#[must_use]
pub fn clip(range: Range, bounds: Range) -> Option<Range> {
    let (start, end) = (range.0.max(bounds.0), range.1.min(bounds.1));
    (start < end).then_some((start, end))
}

/// Number of addresses in ranges that do not overlap.
#[must_use]
pub fn bytes(ranges: &[Range]) -> u64 {
    ranges.iter().fold(0, |sum, (start, end)| sum.saturating_add(end.saturating_sub(*start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odd(ranges: &[Range]) -> Vec<Range> {
        let mut toggles = Toggles::default();
        toggles.extend(ranges.iter().copied());
        toggles.finish()
    }

    #[test]
    fn what_is_there_twice_cancels_out() {
        assert_eq!(odd(&[(10, 20), (10, 20)]), []);
        assert_eq!(odd(&[(10, 20), (12, 15)]), [(10, 12), (15, 20)]);
        assert_eq!(odd(&[(10, 20), (20, 30)]), [(10, 30)]);
        assert_eq!(odd(&[(10, 20), (15, 25), (12, 14)]), [(10, 12), (14, 15), (20, 25)]);
        assert_eq!(odd(&[(10, 10), (9, 3)]), []);
    }

    #[test]
    fn difference_of_sets() {
        let taken = union(vec![(30, 40), (10, 20), (15, 22)]);
        assert_eq!(taken, [(10, 22), (30, 40)]);
        assert_eq!(subtract(&[(0, 50)], &taken), [(0, 10), (22, 30), (40, 50)]);
        assert_eq!(subtract(&[(11, 12), (21, 31), (35, 36)], &taken), [(22, 30)]);
        assert_eq!(subtract(&[(1, 2), (60, 70)], &taken), [(1, 2), (60, 70)]);
        assert_eq!(clip((5, 15), (10, 12)), Some((10, 12)));
        assert_eq!(clip((5, 10), (10, 12)), None);
        assert_eq!(bytes(&taken), 22);
    }
}
