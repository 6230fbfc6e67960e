//! Numbers that look random, the same for the same seed.

use std::time::SystemTime;

/// The seed that a test is to take, by the variable of that name: a number, or `random` for another
/// one each time. Without it a test takes what is written in it, so that the same commit is tested in
/// the same way each time. The test says its seed.
pub fn seed(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    if value == "random" {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
        return Some(now.as_nanos() as u64);
    }
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={value}: should be a number, or random")))
}

/// Yields them.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// One of them, if there are any.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        match all.len() {
            0 => None,
            n => all.get(self.below(n as u64) as usize),
        }
    }
}
