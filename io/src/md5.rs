//! MD5 of several bodies at once, in the lanes of one vector.
//!
//! One MD5 is a chain: each of its steps waits for the one before, and most of a core idles. Eight
//! bodies take little longer than one. This file owns the arithmetic; which bodies go together is
//! decided elsewhere. MD5 is here because S3's clients compare it (RFC 1321), never as a protection.

/// Bodies that are taken together at most.
pub const LANES: usize = 8;

/// The unit of the algorithm, bytes.
pub const UNIT_BYTES: usize = 64;

/// RFC 1321, 3.4: the integer part of 2³² · |sin(i + 1)|.
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// An MD5 between two units of [`UNIT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    state: [u32; 4],
    bytes: u64,
}

impl Default for Running {
    fn default() -> Self {
        Running {
            state: [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476],
            bytes: 0,
        }
    }
}

impl Running {
    /// Takes whole units.
    ///
    /// # Panics
    /// If `bytes` is no multiple of [`UNIT_BYTES`].
    pub fn update(&mut self, bytes: &[u8]) {
        let (units, rest) = bytes.as_chunks::<UNIT_BYTES>();
        assert!(rest.is_empty(), "whole units");
        for unit in units {
            self.state = scalar::step(self.state, unit);
        }
        self.bytes += bytes.len() as u64;
    }

    /// Takes the last bytes, of any number, and gives the digest.
    pub fn finish(mut self, last: &[u8]) -> [u8; 16] {
        let whole = last.len() / UNIT_BYTES * UNIT_BYTES;
        self.update(&last[..whole]);
        let rest = &last[whole..];
        let bits = (self.bytes + rest.len() as u64).wrapping_mul(8);
        let mut padded = [0; 2 * UNIT_BYTES];
        padded[..rest.len()].copy_from_slice(rest);
        padded[rest.len()] = 0x80;
        // The length takes the last eight bytes of the last unit.
        let end = match rest.len() < UNIT_BYTES - 8 {
            true => UNIT_BYTES,
            false => 2 * UNIT_BYTES,
        };
        padded[end - 8..end].copy_from_slice(&bits.to_le_bytes());
        self.update(&padded[..end]);
        let mut digest = [0; 16];
        for (place, word) in digest.chunks_exact_mut(4).zip(self.state) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        digest
    }
}

/// Takes whole units of several bodies: of each as many bytes.
///
/// # Panics
/// If there are more than [`LANES`], the lengths differ, or they are no multiple of [`UNIT_BYTES`].
pub fn update_all(bodies: &mut [(Running, &[u8])]) {
    assert!(bodies.len() <= LANES);
    let length = bodies.first().map_or(0, |(_, bytes)| bytes.len());
    assert!(
        bodies.iter().all(|(_, bytes)| bytes.len() == length) && length.is_multiple_of(UNIT_BYTES)
    );
    #[cfg(target_arch = "x86_64")]
    if bodies.len() > 1 && std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { vector::update_all(bodies) };
    }
    for (running, bytes) in bodies {
        running.update(bytes);
    }
}

/// The 64 steps (RFC 1321, 3.4) for any kind of word. `$add`, `$and`, `$or`, `$xor`, `$not` and
/// `$constant` are functions of it, `$rotate` a macro, as the vector's shifts take constants.
macro_rules! steps {
    ($state:expr, $words:expr; $add:path, $and:path, $or:path, $xor:path, $and_not:path,
     $not:path, $constant:path, $rotate:ident) => {{
        let words = $words;
        let [mut a, mut b, mut c, mut d] = $state;
        macro_rules! step {
            ($mix:expr, $i:expr, $word:expr, $shift:literal) => {{
                let sum = $add($add(a, $constant(SINES[$i])), words[$word]);
                let sum = $add(sum, $mix);
                (a, d, c, b) = (d, c, b, $add($rotate!(sum, $shift), b));
            }};
        }
        macro_rules! four {
            ($mix:expr, $first:expr, $word:expr, $shifts:tt) => {
                four!(@ $mix, $first, $word, $shifts)
            };
            (@ $mix:expr, $first:expr, $word:expr, [$s0:literal, $s1:literal, $s2:literal, $s3:literal]) => {{
                step!($mix, $first, $word($first) % 16, $s0);
                step!($mix, $first + 1, $word($first + 1) % 16, $s1);
                step!($mix, $first + 2, $word($first + 2) % 16, $s2);
                step!($mix, $first + 3, $word($first + 3) % 16, $s3);
            }};
        }
        for i in (0..16).step_by(4) {
            four!($xor(d, $and(b, $xor(c, d))), i, (|i: usize| i), [7, 12, 17, 22]);
        }
        for i in (16..32).step_by(4) {
            // As a sum, so that the step waits for `b` with one operation only.
            four!($or($and(d, b), $and_not(d, c)), i, (|i: usize| 5 * i + 1), [5, 9, 14, 20]);
        }
        for i in (32..48).step_by(4) {
            four!($xor($xor(c, d), b), i, (|i: usize| 3 * i + 5), [4, 11, 16, 23]);
        }
        for i in (48..64).step_by(4) {
            four!($xor(c, $or(b, $not(d))), i, (|i: usize| 7 * i), [6, 10, 15, 21]);
        }
        let [a0, b0, c0, d0] = $state;
        [$add(a0, a), $add(b0, b), $add(c0, c), $add(d0, d)]
    }};
}

mod scalar {
    use super::{SINES, UNIT_BYTES};
    use std::ops::{BitAnd, BitOr, BitXor, Not};

    macro_rules! rotate {
        ($value:expr, $shift:literal) => {
            $value.rotate_left($shift)
        };
    }

    fn and_not(mask: u32, value: u32) -> u32 {
        !mask & value
    }

    fn constant(value: u32) -> u32 {
        value
    }

    pub(super) fn step(state: [u32; 4], unit: &[u8; UNIT_BYTES]) -> [u32; 4] {
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(unit.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        steps!(state, words; u32::wrapping_add, u32::bitand, u32::bitor, u32::bitxor,
               and_not, u32::not, constant, rotate)
    }
}

/// Eight lanes of 32 bits.
#[cfg(target_arch = "x86_64")]
mod vector {
    use super::{LANES, Running, SINES, UNIT_BYTES};
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_andnot_si256, _mm256_loadu_si256,
        _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_setr_epi32,
        _mm256_slli_epi32, _mm256_srli_epi32, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
        _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
    };

    const VECTOR_BYTES: usize = 32;

    macro_rules! rotate {
        ($value:expr, $shift:literal) => {{
            let value = $value;
            _mm256_or_si256(
                _mm256_slli_epi32::<$shift>(value),
                _mm256_srli_epi32::<{ 32 - $shift }>(value),
            )
        }};
    }

    #[target_feature(enable = "avx2")]
    fn constant(value: u32) -> __m256i {
        _mm256_set1_epi32(value.cast_signed())
    }

    #[target_feature(enable = "avx2")]
    fn not(value: __m256i) -> __m256i {
        _mm256_xor_si256(value, _mm256_set1_epi32(-1))
    }

    /// As [`super::update_all`], which has checked the lengths. Lanes without a body repeat the first.
    #[target_feature(enable = "avx2")]
    pub(super) fn update_all(bodies: &mut [(Running, &[u8])]) {
        let lane = |number: usize| if number < bodies.len() { number } else { 0 };
        let units: [&[[u8; UNIT_BYTES]]; LANES] =
            std::array::from_fn(|number| bodies[lane(number)].1.as_chunks().0);
        let word = |place: usize| {
            let of = |number: usize| bodies[lane(number)].0.state[place].cast_signed();
            _mm256_setr_epi32(of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7))
        };
        let mut state = [word(0), word(1), word(2), word(3)];
        for (unit, _) in units[0].iter().enumerate() {
            let words = words(std::array::from_fn(|lane| &units[lane][unit]));
            state = steps!(state, words; _mm256_add_epi32, _mm256_and_si256, _mm256_or_si256,
                           _mm256_xor_si256, _mm256_andnot_si256, not, constant, rotate);
        }
        for (place, words) in state.into_iter().enumerate() {
            for ((running, _), word) in bodies.iter_mut().zip(lanes(words)) {
                running.state[place] = word;
            }
        }
        for (running, bytes) in bodies {
            running.bytes += bytes.len() as u64;
        }
    }

    #[target_feature(enable = "avx2")]
    fn lanes(vector: __m256i) -> [u32; LANES] {
        // SAFETY: both are 32 bytes, of which every pattern is a value.
        unsafe { std::mem::transmute(vector) }
    }

    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; VECTOR_BYTES]) -> __m256i {
        // SAFETY: the load has no alignment, and reads the 32 bytes that the reference is of.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    /// The sixteen words of a unit of each lane: word by word, not lane by lane.
    #[target_feature(enable = "avx2")]
    fn words(units: [&[u8; UNIT_BYTES]; LANES]) -> [__m256i; 16] {
        let half = |number: usize| {
            transposed(std::array::from_fn(|lane| {
                load(&units[lane].as_chunks::<VECTOR_BYTES>().0[number])
            }))
        };
        let (low, high) = (half(0), half(1));
        std::array::from_fn(|word| if word < 8 { low[word] } else { high[word - 8] })
    }

    /// Rows to columns, eight by eight.
    #[target_feature(enable = "avx2")]
    fn transposed(rows: [__m256i; 8]) -> [__m256i; 8] {
        let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
        let pairs = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let fours = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        let ((a0, a2), (b0, b2)) = (pairs(r0, r1), pairs(r2, r3));
        let ((c0, c2), (d0, d2)) = (pairs(r4, r5), pairs(r6, r7));
        let ((e0, e1), (e2, e3)) = (fours(a0, b0), fours(a2, b2));
        let ((f0, f1), (f2, f3)) = (fours(c0, d0), fours(c2, d2));
        let low = |a, b| _mm256_permute2x128_si256::<0x20>(a, b);
        let high = |a, b| _mm256_permute2x128_si256::<0x31>(a, b);
        [
            low(e0, f0),
            low(e1, f1),
            low(e2, f2),
            low(e3, f3),
            high(e0, f0),
            high(e1, f1),
            high(e2, f2),
            high(e3, f3),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(digest: [u8; 16]) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_digests_of_the_rfc_come_out() {
        let known = [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            (
                "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                "d174ab98d277d9f5a5611c2c9f419d9f",
            ),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ];
        for (text, digest) in known {
            assert_eq!(hex(Running::default().finish(text.as_bytes())), digest);
        }
    }

    fn reference(bytes: &[u8]) -> [u8; 16] {
        use md5::Digest as _;
        md5::Md5::digest(bytes).into()
    }

    #[test]
    fn every_length_of_the_last_unit_is_padded_right() {
        let bytes: Vec<u8> = (0..300_u32).map(|number| (number * 7) as u8).collect();
        for length in 0..bytes.len() {
            let bytes = &bytes[..length];
            assert_eq!(
                Running::default().finish(bytes),
                reference(bytes),
                "{length}"
            );
        }
    }

    proptest! {
        #[test]
        fn lanes_do_not_touch_each_other(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 1024), 1..=LANES),
            cuts in prop::collection::vec(0_usize..=16, 0..4),
            kept in 0_usize..1024,
        ) {
            let mut running = vec![Running::default(); contents.len()];
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut * UNIT_BYTES).collect();
            cuts.sort_unstable();
            let mut start = 0;
            for cut in cuts {
                let mut bodies: Vec<_> = running.iter().copied()
                    .zip(contents.iter().map(|content| &content[start..cut]))
                    .collect();
                update_all(&mut bodies);
                running = bodies.into_iter().map(|(running, _)| running).collect();
                start = cut;
            }
            let end = start.max(kept);
            for (running, content) in running.into_iter().zip(&contents) {
                prop_assert_eq!(running.finish(&content[start..end]), reference(&content[..end]));
            }
        }
    }

    /// `cargo test --release -p forebay-io md5 -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let contents: Vec<Vec<u8>> = (0..LANES).map(|lane| vec![lane as u8; 1 << 20]).collect();
        for lanes in [1, 2, 4, 8] {
            let start = std::time::Instant::now();
            let mut bytes = 0;
            while start.elapsed().as_millis() < 500 {
                let mut bodies: Vec<_> = contents[..lanes]
                    .iter()
                    .map(|content| (Running::default(), &content[..]))
                    .collect();
                update_all(&mut bodies);
                std::hint::black_box(&bodies);
                bytes += lanes << 20;
            }
            let rate = bytes as f64 / start.elapsed().as_secs_f64() / f64::from(1 << 30);
            println!("{lanes} lanes: {rate:.2} GiB/s");
        }
        let start = std::time::Instant::now();
        let mut bytes = 0;
        while start.elapsed().as_millis() < 500 {
            std::hint::black_box(reference(&contents[0]));
            bytes += 1 << 20;
        }
        let rate = bytes as f64 / start.elapsed().as_secs_f64() / f64::from(1 << 30);
        println!("md-5 crate: {rate:.2} GiB/s");
    }
}
