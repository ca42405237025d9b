//! Does any decoder break on any bytes, or take more memory than it may?
//!
//! The corpus of `fuzz/` and mutations of it, through the same functions that `cargo fuzz` calls, in seconds and without
//! nightly Rust: every prefix, every byte changed, inserted and left out, lengths and nestings that promise too much, and
//! seeded random mutations. `make fuzz` looks further.

#[path = "../fuzz/entries.rs"]
mod entries;

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

type Entry = fn(&[u8]);

/// Every decoder, and the most memory that it may take at a time: so many bytes for each byte of its input, and so many else.
///
/// The first is what `src/wire/mod.rs` states: 512 bytes for a tensor, which takes three bytes at least (`{},`), and the
/// input and its strings once more. So little else that no length which is only announced is ever reserved; a job comes with a lane and its channel here.
const DECODERS: [(&str, Entry, usize, usize); 7] = [
    ("msgpack", entries::msgpack, 200, 4_096),
    ("json", entries::json, 200, 4_096),
    ("binary", entries::binary, 200, 4_096),
    ("reply", entries::reply, 200, 4_096),
    ("job", entries::job, 200, 49_152),
    ("frames", entries::frames, 200, 4_096),
    // An empty message of two bytes becomes some four hundred, in a list with as much room again.
    ("onnx", entries::onnx, 800, 65_536),
];

/// One test, since what it counts is the memory of the whole process.
#[test]
fn no_bytes_break_a_decoder_or_take_more_memory_than_they_may() {
    for (name, entry, each, other) in DECODERS {
        let mut decoder = Decoder {
            name,
            entry,
            each,
            other,
            inputs: 0,
            most: 0.0,
        };
        let corpus = corpus(name);
        // What is made once, such as metrics, is nobody's input.
        entry(&corpus[0]);
        for seed in &corpus {
            decoder.take(seed);
            if seed.len() <= SMALL {
                decoder.every_change_of_one_byte(seed);
            }
        }
        decoder.bombs(&corpus);
        decoder.random(&corpus);
        println!(
            "{name}: {} inputs, at most {:.2} of what they may take",
            decoder.inputs, decoder.most
        );
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no corpus in {}", folder.display());
    files.iter().map(|file| std::fs::read(file).expect("a file")).collect()
}

struct Decoder {
    name: &'static str,
    entry: Entry,
    each: usize,
    other: usize,
    inputs: usize,
    /// The biggest share of the memory allowed that an input took.
    most: f64,
}

impl Decoder {
    fn take(&mut self, input: &[u8]) {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let decoded = catch_unwind(AssertUnwindSafe(|| (self.entry)(input)));
        let taken = MEMORY.peak_usage().saturating_sub(before);
        let allowed = self.each * input.len() + self.other;
        assert!(decoded.is_ok(), "{} panics on {}", self.name, hex(input));
        assert!(taken <= allowed, "{} takes {taken} bytes for {}", self.name, hex(input));
        self.inputs += 1;
        self.most = self.most.max(taken as f64 / allowed as f64);
    }

    fn every_change_of_one_byte(&mut self, seed: &[u8]) {
        for place in 0..=seed.len() {
            self.take(&seed[..place]);
            for inserted in TELLING {
                self.take(&[&seed[..place], &[inserted], &seed[place..]].concat());
            }
        }
        for place in 0..seed.len() {
            self.take(&[&seed[..place], &seed[place + 1..]].concat());
            let mut changed = seed.to_vec();
            for flip in [1, 2, 4, 8, 16, 32, 64, 128, 0xff] {
                changed[place] = seed[place] ^ flip;
                self.take(&changed);
            }
            for telling in TELLING {
                changed[place] = telling;
                self.take(&changed);
            }
        }
    }

    /// Lengths that are not there and nestings without end, by themselves and in every place of a small input.
    fn bombs(&mut self, corpus: &[Vec<u8>]) {
        let announced = [0xc6, 0xc9, 0xdb, 0xdd, 0xdf].map(|kind| vec![kind, 0xff, 0xff, 0xff, 0xff]);
        let nested = [
            &b"["[..],
            b"{\"a\":",
            b"\x91",
            b"\x81\xa1a",
            b"\xdd\x00\x00\x00\x01",
            b"\x0a\x01",
        ];
        let nested = nested.map(|level| level.repeat(20_000));
        for bomb in announced.iter().chain(&nested) {
            self.take(bomb);
            for kind in [0, 100, 255] {
                self.take(&[&[kind], &bomb[..]].concat());
            }
        }
        let smallest = corpus.iter().min_by_key(|seed| seed.len()).expect("a corpus");
        for place in 0..=smallest.len() {
            for bomb in &announced {
                self.take(&[&smallest[..place], bomb, &smallest[place..]].concat());
            }
            self.take(
                &[
                    &smallest[..place],
                    &nested[place % nested.len()][..4_000],
                    &smallest[place..],
                ]
                .concat(),
            );
        }
    }

    fn random(&mut self, corpus: &[Vec<u8>]) {
        let mut random = fastrand::Rng::with_seed(SEED);
        for _ in 0..RANDOM {
            let mut input = corpus[random.usize(..corpus.len())].clone();
            for _ in 0..random.usize(1..8) {
                mutate(&mut input, corpus, &mut random);
            }
            self.take(&input);
        }
    }
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut fastrand::Rng) {
    let place = random.usize(..=input.len());
    let end = random.usize(place..=input.len().min(place + 16));
    match random.u8(..6) {
        0 => input.truncate(place),
        1 => drop(input.drain(place..end)),
        2 => {
            let again = input[place..end].to_vec();
            input.splice(place..place, again);
        }
        3 => input.insert(place, TELLING[random.usize(..TELLING.len())]),
        4 => {
            let other = &corpus[random.usize(..corpus.len())];
            let from = random.usize(..=other.len());
            let piece = other[from..other.len().min(from + 32)].to_vec();
            input.splice(place..end, piece);
        }
        _ => {
            if let Some(byte) = input.get_mut(place) {
                *byte = random.u8(..);
            }
        }
    }
}

fn hex(input: &[u8]) -> String {
    let mut text = String::new();
    for byte in &input[..input.len().min(2_000)] {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Bytes that mean something to one of the decoders.
const TELLING: [u8; 14] = [
    0, 1, 0x7f, 0x80, 0xff, 0xc1, 0xdf, 0xdd, b'[', b'{', b'"', b'}', b'-', b'e',
];
const SMALL: usize = 256;
const RANDOM: usize = 20_000;
const SEED: u64 = 7;
