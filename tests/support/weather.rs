//! The weather on a serial line of a test: damage to its bytes, and a kernel's lines of text between them. Seeded, and without time.
#![allow(dead_code)] // Each test file uses its own part of this.

/// Numbers without a pattern, the same for the same seed (xorshift64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Seeds that differ in one bit begin alike.
        for _ in 0..16 {
            dice.roll();
        }
        dice
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.roll() >> 11) % limit
    }

    /// How many bytes pass before the next of events that hit one byte in `one_in`, independently of each other.
    fn until_next(&mut self, one_in: u32) -> u64 {
        let fraction = ((self.roll() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        (-fraction.ln() * f64::from(one_in)) as u64
    }
}

/// What was done to the bytes of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Harm {
    pub flipped: u64,
    pub dropped: u64,
    pub doubled: u64,
    /// Which bytes it was, counted from the first that the line ever took in this direction.
    pub places: Vec<u64>,
}

impl Harm {
    pub fn count(&self) -> u64 {
        self.flipped + self.dropped + self.doubled
    }
}

/// Flips, drops or doubles one byte in so many.
#[derive(Clone, Debug)]
pub struct Damage {
    dice: Dice,
    one_in: Option<u32>,
    left: u64,
    position: u64,
    pub harm: Harm,
}

impl Damage {
    /// `None`: it does nothing.
    pub fn new(seed: u64, one_in: Option<u32>) -> Damage {
        let mut dice = Dice::new(seed);
        let left = one_in.map_or(u64::MAX, |one_in| dice.until_next(one_in));
        Damage { dice, one_in, left, position: 0, harm: Harm::default() }
    }

    /// Appends what becomes of these bytes.
    pub fn pass(&mut self, mut bytes: &[u8], into: &mut Vec<u8>) {
        let Some(one_in) = self.one_in else { return into.extend_from_slice(bytes) };
        while self.left < bytes.len() as u64 {
            let (whole, rest) = bytes.split_at(self.left as usize);
            into.extend_from_slice(whole);
            self.harm.places.push(self.position + whole.len() as u64);
            self.hit(rest[0], into);
            self.position += whole.len() as u64 + 1;
            bytes = &rest[1..];
            self.left = self.dice.until_next(one_in);
        }
        into.extend_from_slice(bytes);
        self.left -= bytes.len() as u64;
        self.position += bytes.len() as u64;
    }

    fn hit(&mut self, byte: u8, into: &mut Vec<u8>) {
        match self.dice.below(3) {
            0 => {
                into.push(byte ^ (1 + self.dice.below(255) as u8));
                self.harm.flipped += 1;
            }
            1 => self.harm.dropped += 1,
            _ => {
                into.extend([byte, byte]);
                self.harm.doubled += 1;
            }
        }
    }
}

/// Whole lines of text at random places, as a kernel inserts them into whatever is being written.
#[derive(Clone, Debug)]
pub struct Flood {
    dice: Dice,
    percent: u32,
    left: u64,
    number: u32,
    next: Vec<u8>,
    /// All text that was inserted.
    pub text: Vec<u8>,
}

const WORDS: [&str; 8] =
    ["usb", "new high-speed device", "link is up", "random:", "crng init done", "EXT4-fs", "~", "ok"];

impl Flood {
    /// Text that makes up `percent` of all bytes; 0: none.
    pub fn new(seed: u64, percent: u32) -> Flood {
        assert!(percent < 100, "some bytes must be none of ours");
        let mut flood =
            Flood { dice: Dice::new(seed), percent, left: 0, number: 0, next: Vec::new(), text: Vec::new() };
        flood.choose();
        flood
    }

    /// Appends these bytes, and the text that comes between them.
    pub fn pass(&mut self, mut bytes: &[u8], into: &mut Vec<u8>) {
        if self.percent == 0 {
            return into.extend_from_slice(bytes);
        }
        while self.left < bytes.len() as u64 {
            let (before, rest) = bytes.split_at(self.left as usize);
            into.extend_from_slice(before);
            into.extend_from_slice(&self.next);
            self.text.extend_from_slice(&self.next);
            bytes = rest;
            self.choose();
        }
        into.extend_from_slice(bytes);
        self.left -= bytes.len() as u64;
    }

    /// Chooses the next line, and behind how many bytes it comes.
    fn choose(&mut self) {
        let time = u64::from(self.number) * 1371 + self.dice.below(1000);
        let words = (0..self.dice.below(6)).map(|_| WORDS[self.dice.below(8) as usize]).collect::<Vec<_>>();
        let (seconds, micros) = (12 + time / 1_000_000, time % 1_000_000);
        let line = format!("[{seconds:>5}.{micros:06}] kmsg line {:06} {}\r\n", self.number, words.join(" "));
        self.number += 1;
        self.next = line.into_bytes();
        if self.percent > 0 {
            let mean = self.next.len() as u64 * u64::from(100 - self.percent) / u64::from(self.percent);
            self.left = 1 + self.dice.below(2 * mean + 1);
        }
    }
}
