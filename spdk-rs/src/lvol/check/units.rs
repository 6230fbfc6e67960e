//! Numbers of clusters, or of pages of metadata, as ranges.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// Numbers, ascending, as ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Units(Vec<Range<u64>>);

impl Units {
    /// Adds a number that is greater than all before.
    pub(super) fn push(&mut self, unit: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == unit => last.end += 1,
            _ => self.0.push(unit..unit + 1),
        }
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// How many numbers there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The numbers that are in both.
    pub(super) fn in_both(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        let (mut mine, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (mine.peek(), theirs.peek()) {
            let (start, end) = (a.start.max(b.start), a.end.min(b.end));
            if start < end {
                both.push(start..end);
            }
            if a.end < b.end {
                mine.next();
            } else {
                theirs.next();
            }
        }
        Self(both)
    }
}

impl FromIterator<Range<u64>> for Units {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut units: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match units.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => units.push(range),
            }
        }
        Self(units)
    }
}

/// The first few, for people.
impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        for (at, range) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match range.end - range.start {
                1 => write!(f, "{comma}{}", range.start)?,
                _ => write!(f, "{comma}{}–{}", range.start, range.end - 1)?,
            }
        }
        if self.0.len() > SHOWN {
            f.write_str(", …")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(numbers: &[u64]) -> Units {
        numbers.iter().map(|number| *number..number + 1).collect()
    }

    #[test]
    fn ranges_are_joined_and_intersected() {
        let mut pushed = Units::default();
        for unit in [1, 2, 3, 7, 9] {
            pushed.push(unit);
        }
        assert_eq!(pushed, units(&[9, 1, 3, 2, 7]));
        assert_eq!((pushed.count(), pushed.ranges().len()), (5, 3));
        assert_eq!(pushed.to_string(), "1–3, 7, 9");
        let other: Units = [0..2, 3..8, 9..20].into_iter().collect();
        assert_eq!(pushed.in_both(&other), units(&[1, 3, 7, 9]));
        assert_eq!(pushed.in_both(&pushed), pushed);
        assert!(pushed.in_both(&units(&[4, 8])).is_empty());
    }
}
