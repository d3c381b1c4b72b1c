//! CRC64-NVME and CRC32C of the same bytes, in one pass over them.
//!
//! Every byte that enters the cache needs both: the first goes to the store with its block, the
//! second guards a chunk on disk. This file owns the pass; it never says where a chunk ends.

use crc_fast::CrcAlgorithm::{Crc32Iscsi, Crc64Nvme};

/// The CRC64-NVME of all bytes taken, and the CRC32C of those since it was last asked for.
pub struct PairedCrc(State);

enum State {
    #[cfg(target_arch = "x86_64")]
    Fused(fused::Registers),
    Library(Box<Digests>),
}

struct Digests {
    crc64nvme: crc_fast::Digest,
    crc32c: crc_fast::Digest,
}

impl Default for PairedCrc {
    fn default() -> Self {
        #[cfg(target_arch = "x86_64")]
        if fused::is_supported() && !std::is_x86_feature_detected!("avx512vl") {
            return PairedCrc(State::Fused(fused::Registers::default()));
        }
        PairedCrc(State::library())
    }
}

impl State {
    fn library() -> State {
        State::Library(Box::new(Digests {
            crc64nvme: crc_fast::Digest::new(Crc64Nvme),
            crc32c: crc_fast::Digest::new(Crc32Iscsi),
        }))
    }
}

impl PairedCrc {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            #[cfg(target_arch = "x86_64")]
            State::Fused(registers) => {
                // SAFETY: this state is made only where the processor has the four features.
                *registers = unsafe { fused::update(*registers, bytes) };
            }
            State::Library(digests) => {
                digests.crc64nvme.update(bytes);
                digests.crc32c.update(bytes);
            }
        }
    }

    /// The CRC32C of the bytes since the last call; the next byte begins another.
    pub fn take_crc32c(&mut self) -> u32 {
        match &mut self.0 {
            #[cfg(target_arch = "x86_64")]
            State::Fused(registers) => registers.take_crc32c(),
            State::Library(digests) => {
                let crc = digests.crc32c.finalize() as u32;
                digests.crc32c.reset();
                crc
            }
        }
    }

    /// The CRC64-NVME of all bytes.
    pub fn crc64nvme(&self) -> u64 {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            State::Fused(registers) => registers.crc64nvme(),
            State::Library(digests) => digests.crc64nvme.finalize(),
        }
    }
}

/// Both sums with 256-bit carry-less products and the processor's own CRC32C, interleaved: the two
/// keep different units busy. Of 16 KiB at a time 10.5 GiB/s where `crc-fast`, whose wide code needs
/// 512-bit registers, makes 4.4 in two passes (EPYC, Zen 3).
///
/// Source: V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
/// Instruction" and "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction" (Intel,
/// 2009 and 2011). Both polynomials are reflected here: the lowest bit is the highest power.
#[cfg(target_arch = "x86_64")]
mod fused {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi64_si128,
        _mm_cvtsi128_si64, _mm_extract_epi64, _mm_set_epi64x, _mm_setzero_si128, _mm_xor_si128,
        _mm256_castsi256_si128, _mm256_clmulepi64_epi128, _mm256_extracti128_si256,
        _mm256_loadu_si256, _mm256_set_epi64x, _mm256_setzero_si256, _mm256_xor_si256,
        _mm256_zextsi128_si256,
    };

    const CRC64_POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;
    const CRC32C_POLYNOMIAL: u32 = 0x82f6_3b78;

    /// Bytes that one turn of the loop takes: twelve vectors for the one sum, and as many bytes from
    /// three lanes for the other, whose instruction answers after three cycles.
    const TURN_BYTES: usize = 12 * VECTOR_BYTES;
    const LANES: usize = 3;
    const LANE_TURN_BYTES: usize = TURN_BYTES / LANES;
    const VECTOR_BYTES: usize = 32;
    const WORD_BYTES: usize = 8;

    /// Turns between two unions of the lanes: all that a TLS record of 16 KiB has.
    const TURNS_MAX: usize = 42;

    /// Whether the processor has what [`update`] is compiled for.
    pub(super) fn is_supported() -> bool {
        std::is_x86_feature_detected!("vpclmulqdq")
            && std::is_x86_feature_detected!("pclmulqdq")
            && std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("sse4.2")
    }

    /// Both sums as the algorithms hold them between bytes: inverted.
    #[derive(Clone, Copy)]
    pub(super) struct Registers {
        crc64: u64,
        crc32c: u32,
    }

    impl Default for Registers {
        fn default() -> Self {
            Registers {
                crc64: u64::MAX,
                crc32c: u32::MAX,
            }
        }
    }

    impl Registers {
        pub(super) fn take_crc32c(&mut self) -> u32 {
            !std::mem::replace(&mut self.crc32c, u32::MAX)
        }

        pub(super) fn crc64nvme(self) -> u64 {
            !self.crc64
        }
    }

    const fn times_x(value: u64) -> u64 {
        (value >> 1) ^ (CRC64_POLYNOMIAL * (value & 1))
    }

    /// x to a power, modulo CRC64's polynomial. A product of two reflected values comes out times x,
    /// so that what moves a sum by n bits is x to the n - 1.
    const fn x_to_the(power: usize) -> i64 {
        let mut value = 1 << 63;
        let mut at = 0;
        while at < power {
            value = times_x(value);
            at += 1;
        }
        value.cast_signed()
    }

    /// What a byte leaves of itself in a CRC64.
    const BYTE_REMAINDERS: [u64; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u64;
            let mut bit = 0;
            while bit < 8 {
                value = times_x(value);
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };

    /// For each count of turns, what moves a CRC32C past one lane of so many, and past two: x to the
    /// lane's bits less 33, of which the instruction that divides gives 32 back and the product one.
    const LANE_SHIFTS: [(u32, u32); TURNS_MAX + 1] = {
        let lane_bits = LANE_TURN_BYTES * 8;
        let mut powers = [0; 2 * TURNS_MAX + 1];
        let mut value: u32 = 1 << 31;
        let mut power = 33;
        while power < 2 * TURNS_MAX * lane_bits {
            value = (value >> 1) ^ (CRC32C_POLYNOMIAL * (value & 1));
            power += 1;
            if power.is_multiple_of(lane_bits) {
                powers[power / lane_bits] = value;
            }
        }
        let mut shifts = [(0, 0); TURNS_MAX + 1];
        let mut turns = 1;
        while turns <= TURNS_MAX {
            shifts[turns] = (powers[turns], powers[2 * turns]);
            turns += 1;
        }
        shifts
    };

    /// Takes the next bytes.
    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq,sse4.2")]
    pub(super) fn update(mut registers: Registers, bytes: &[u8]) -> Registers {
        let mut rest = bytes;
        let mut sum = _mm_setzero_si128();
        // What came before is added to the first eight bytes, wherever those are taken.
        let mut entering = _mm_set_epi64x(0, registers.crc64.cast_signed());
        if bytes.len() >= TURN_BYTES {
            (sum, registers.crc32c, rest) = take_turns(entering, registers.crc32c, bytes);
            entering = _mm_setzero_si128();
        }
        let (pieces, rest) = rest.as_chunks::<16>();
        for piece in pieces {
            let whole = u128::from_le_bytes(*piece);
            let (low, high) = (whole as u64, (whole >> 64) as u64);
            let data = _mm_set_epi64x(high.cast_signed(), low.cast_signed());
            sum = fold(sum, _mm_xor_si128(data, entering));
            entering = _mm_setzero_si128();
            let crc = _mm_crc32_u64(u64::from(registers.crc32c), low);
            registers.crc32c = _mm_crc32_u64(crc, high) as u32;
        }
        if bytes.len() >= 16 {
            let first = _mm_cvtsi128_si64(sum).cast_unsigned();
            let second = _mm_extract_epi64::<1>(sum).cast_unsigned();
            registers.crc64 = divided(divided(first) ^ second);
        }
        for byte in rest {
            let index = usize::from(registers.crc64 as u8 ^ byte);
            registers.crc64 = BYTE_REMAINDERS[index] ^ (registers.crc64 >> 8);
            registers.crc32c = _mm_crc32_u8(registers.crc32c, *byte);
        }
        registers
    }

    /// Takes as many turns as `bytes` holds; returns the 128 bits that all of them are congruent to,
    /// the CRC32C, and the bytes that are left.
    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq,sse4.2")]
    fn take_turns(entering: __m128i, mut crc32c: u32, bytes: &[u8]) -> (__m128i, u32, &[u8]) {
        let mut sums = [_mm256_setzero_si256(); 4];
        let mut entering = _mm256_zextsi128_si256(entering);
        let mut rest = bytes;
        while rest.len() >= TURN_BYTES {
            let turns = (rest.len() / TURN_BYTES).min(TURNS_MAX);
            let (block, after) = rest.split_at(turns * TURN_BYTES);
            let lane_bytes = turns * LANE_TURN_BYTES;
            let mut crcs = [u64::from(crc32c), 0, 0];
            for turn in 0..turns {
                // SAFETY: twelve vectors from here on end where the turn does, and of each lane this
                // turn's words end where the lane does at the latest; both are within `block`.
                unsafe {
                    let vectors = block.as_ptr().add(turn * TURN_BYTES);
                    let words = block.as_ptr().add(turn * LANE_TURN_BYTES);
                    // A step takes a vector for the one sum and four words for the other.
                    macro_rules! step {
                        ($step:literal) => {
                            let vector = vectors.add($step * VECTOR_BYTES).cast();
                            let mut data = _mm256_loadu_si256(vector);
                            if $step == 0 {
                                data = _mm256_xor_si256(data, entering);
                                entering = _mm256_setzero_si256();
                            }
                            sums[$step % 4] = fold_wide(sums[$step % 4], data);
                            step!(word $step * 4);
                            step!(word $step * 4 + 1);
                            step!(word $step * 4 + 2);
                            step!(word $step * 4 + 3);
                        };
                        (word $word:expr) => {
                            let lane = $word % LANES;
                            let word = words.add(lane * lane_bytes + $word / LANES * WORD_BYTES);
                            let word = word.cast::<u64>().read_unaligned();
                            crcs[lane] = _mm_crc32_u64(crcs[lane], word);
                        };
                    }
                    step!(0);
                    step!(1);
                    step!(2);
                    step!(3);
                    step!(4);
                    step!(5);
                    step!(6);
                    step!(7);
                    step!(8);
                    step!(9);
                    step!(10);
                    step!(11);
                }
            }
            let (by_one, by_two) = LANE_SHIFTS[turns];
            crc32c = moved(crcs[0], by_two) ^ moved(crcs[1], by_one) ^ crcs[2] as u32;
            rest = after;
        }
        let mut sum = _mm_setzero_si128();
        for two in sums {
            sum = fold(sum, _mm256_castsi256_si128(two));
            sum = fold(sum, _mm256_extracti128_si256::<1>(two));
        }
        (sum, crc32c, rest)
    }

    /// Moves two sums past four vectors and adds what lies there.
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn fold_wide(sums: __m256i, data: __m256i) -> __m256i {
        let low = const { x_to_the(4 * 256 + 64 - 1) };
        let high = const { x_to_the(4 * 256 - 1) };
        let keys = _mm256_set_epi64x(high, low, high, low);
        let first = _mm256_clmulepi64_epi128::<0x00>(sums, keys);
        let second = _mm256_clmulepi64_epi128::<0x11>(sums, keys);
        _mm256_xor_si256(_mm256_xor_si256(first, second), data)
    }

    /// Moves a sum past sixteen bytes and adds those.
    #[inline]
    #[target_feature(enable = "pclmulqdq")]
    fn fold(sum: __m128i, data: __m128i) -> __m128i {
        let keys = _mm_set_epi64x(const { x_to_the(128 - 1) }, const { x_to_the(192 - 1) });
        let first = _mm_clmulepi64_si128::<0x00>(sum, keys);
        let second = _mm_clmulepi64_si128::<0x11>(sum, keys);
        _mm_xor_si128(_mm_xor_si128(first, second), data)
    }

    /// A CRC32C moved by one of [`LANE_SHIFTS`].
    #[inline]
    #[target_feature(enable = "pclmulqdq,sse4.2")]
    fn moved(crc: u64, shift: u32) -> u32 {
        let crc = _mm_cvtsi64_si128(crc.cast_signed());
        let shift = _mm_cvtsi64_si128(i64::from(shift));
        let product = _mm_cvtsi128_si64(_mm_clmulepi64_si128::<0>(crc, shift));
        _mm_crc32_u64(0, product.cast_unsigned()) as u32
    }

    /// What eight bytes leave of themselves in a CRC64.
    fn divided(mut bytes: u64) -> u64 {
        for _ in 0..8 {
            bytes = BYTE_REMAINDERS[usize::from(bytes as u8)] ^ (bytes >> 8);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn states() -> Vec<PairedCrc> {
        let mut states = vec![PairedCrc(State::library())];
        #[cfg(target_arch = "x86_64")]
        if fused::is_supported() {
            states.push(PairedCrc(State::Fused(fused::Registers::default())));
        }
        states
    }

    /// The catalogue's check values.
    #[test]
    fn the_check_values_come_out() {
        for mut sums in states() {
            sums.update(b"123456789");
            assert_eq!(sums.crc64nvme(), 0xae8b_1486_0a79_9888);
            assert_eq!(sums.take_crc32c(), 0xe306_9283);
            sums.update(b"123456789");
            assert_eq!(sums.take_crc32c(), 0xe306_9283, "it begins again");
        }
    }

    fn check(bytes: &[u8], cuts: &[usize]) {
        for mut sums in states() {
            let mut at = 0;
            for cut in cuts {
                let end = bytes.len().min(at + cut);
                sums.update(&bytes[at..end]);
                let crc32c = crc_fast::checksum(Crc32Iscsi, &bytes[at..end]);
                assert_eq!(u64::from(sums.take_crc32c()), crc32c, "{at}..{end}");
                at = end;
            }
            let middle = at + (bytes.len() - at) / 3;
            sums.update(&bytes[at..middle]);
            sums.update(&bytes[middle..]);
            let crc32c = crc_fast::checksum(Crc32Iscsi, &bytes[at..]);
            assert_eq!(u64::from(sums.take_crc32c()), crc32c, "{at}..");
            assert_eq!(sums.crc64nvme(), crc_fast::checksum(Crc64Nvme, bytes));
        }
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let step = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(step).collect()
    }

    #[test]
    fn every_length_around_a_turn_comes_out() {
        let bytes = noise(2_000, 7);
        (0..=bytes.len()).for_each(|length| check(&bytes[..length], &[]));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_come_out(
            length in 0..200_000_usize,
            seed: u64,
            skip in 0..32_usize,
            cuts in prop::collection::vec(0..70_000_usize, 0..5),
        ) {
            check(&noise(length + skip, seed)[skip..], &cuts);
        }
    }
}
