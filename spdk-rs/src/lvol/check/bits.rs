//! A row of bits: what is used.

/// As many bits as were asked for. Those beyond are not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    bytes: Vec<u8>,
    len: u64,
}

impl Bits {
    pub(super) fn new(len: u64) -> Self {
        let bytes = vec![0; len.div_ceil(8) as usize];
        Self { bytes, len }
    }

    /// Takes the first `len` bits, the lowest of each byte first. `None` if there are fewer.
    pub(super) fn from_bytes(bytes: &[u8], len: u64) -> Option<Self> {
        let bytes = bytes.get(..usize::try_from(len.div_ceil(8)).ok()?)?.to_vec();
        Some(Self { bytes, len })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn get(&self, at: u64) -> bool {
        at < self.len && self.bytes[(at / 8) as usize] & 1 << (at % 8) != 0
    }

    /// Sets one that is there.
    pub(super) fn set(&mut self, at: u64) {
        if at < self.len {
            self.bytes[(at / 8) as usize] |= 1 << (at % 8);
        }
    }

    /// Those that are set, ascending.
    pub(super) fn ones(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.len).filter(|at| self.get(*at))
    }

    /// Those that are set in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        self.with(other, |mine, theirs| mine & theirs)
    }

    /// Those that are set in one or both.
    pub(super) fn or(&self, other: &Self) -> Self {
        self.with(other, |mine, theirs| mine | theirs)
    }

    fn with(&self, other: &Self, combine: impl Fn(u8, u8) -> u8) -> Self {
        let pairs = self.bytes.iter().zip(&other.bytes);
        Self {
            bytes: pairs.map(|(mine, theirs)| combine(*mine, *theirs)).collect(),
            len: self.len.min(other.len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_they_were_set_and_nowhere_else() {
        let mut bits = Bits::new(11);
        for at in [0, 7, 10, 11, 500] {
            bits.set(at);
        }
        assert_eq!(bits.ones().collect::<Vec<_>>(), [0, 7, 10]);
        assert!(!bits.get(11) && !bits.get(u64::MAX));
        let read = Bits::from_bytes(&[0x81, 0xfc], 11).expect("enough");
        assert_eq!(read.ones().collect::<Vec<_>>(), [0, 7, 10]);
        assert_eq!(Bits::from_bytes(&[0xff], 9), None);
        let other = Bits::from_bytes(&[0x82, 0], 11).expect("enough");
        assert_eq!(bits.and(&other).ones().collect::<Vec<_>>(), [7]);
        assert_eq!(bits.or(&other).ones().collect::<Vec<_>>(), [0, 1, 7, 10]);
    }
}
