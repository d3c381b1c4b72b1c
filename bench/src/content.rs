//! Deterministic content: owns the function from (key, size, offset) to bytes.
//!
//! The bytes of an object depend on its key only, so two machines agree on them without talking, and a reader can
//! check any range without the rest. It is made to be as cheap as a copy (one XOR per word against a tile that stays in
//! the processor's cache); it is never meant to be unpredictable.

use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64;

/// First path segment of the keys that exist without having been written, see [`synthetic_size`].
pub const SYNTHETIC_PREFIX: &str = "synthetic/";

/// Bytes of one tile: small enough for a second-level cache, large enough that the XOR loop is not all bookkeeping.
const TILE_BYTES: usize = 64 * 1024;

/// Bytes that share one mask. A page of 4 KiB, so that two pages of one object swapped by a faulty disk path differ.
const PAGE_BYTES: u64 = 4096;

const WORD_BYTES: usize = 8;

const _: () = assert!((TILE_BYTES as u64).is_multiple_of(PAGE_BYTES));

static TILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..(TILE_BYTES / WORD_BYTES) as u64)
        .flat_map(|word| mix(word).to_le_bytes())
        .collect()
});

/// The content of one key: an endless stream of which an object of `n` bytes is the first `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    seed: u64,
}

impl Content {
    /// The content that belongs to `key`.
    pub fn of_key(key: &str) -> Self {
        Self {
            seed: xxh3_64(key.as_bytes()),
        }
    }

    /// Fills `target` with the bytes from `offset` on.
    pub fn fill(&self, offset: u64, target: &mut [u8]) {
        let mut position = offset;
        let mut rest = target;
        while !rest.is_empty() {
            let left_in_page = (PAGE_BYTES - position % PAGE_BYTES) as usize;
            let (piece, tail) = rest.split_at_mut(left_in_page.min(rest.len()));
            self.fill_within_page(position, piece);
            position += piece.len() as u64;
            rest = tail;
        }
    }

    fn fill_within_page(&self, offset: u64, target: &mut [u8]) {
        let start = (offset % TILE_BYTES as u64) as usize;
        let source = &TILE[start..start + target.len()];
        let mut mask = mix(self.seed ^ mix(offset / PAGE_BYTES)).to_le_bytes();
        mask.rotate_left((offset % WORD_BYTES as u64) as usize);
        let mask_word = u64::from_le_bytes(mask);
        let (target_words, target_tail) = target.as_chunks_mut::<WORD_BYTES>();
        let (source_words, source_tail) = source.as_chunks::<WORD_BYTES>();
        for (to, from) in target_words.iter_mut().zip(source_words) {
            *to = (u64::from_le_bytes(*from) ^ mask_word).to_le_bytes();
        }
        for ((to, from), mask) in target_tail.iter_mut().zip(source_tail).zip(mask) {
            *to = from ^ mask;
        }
    }

    /// Where `bytes`, read at `offset`, first differ from the content; `None` when they are right.
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut expected = [0_u8; PAGE_BYTES as usize];
        let mut position = 0;
        for piece in bytes.chunks(expected.len()) {
            let expected = &mut expected[..piece.len()];
            self.fill(offset + position, expected);
            if expected != piece {
                let inside = expected
                    .iter()
                    .zip(piece)
                    .position(|(right, read)| right != read)?;
                return Some(offset + position + inside as u64);
            }
            position += piece.len() as u64;
        }
        None
    }

    /// A tag for the content at `size` bytes. Its form is that of a multipart ETag, which says: not an MD5.
    pub fn etag(&self, size: u64) -> String {
        format!("\"{:016x}{:016x}-1\"", self.seed, mix(self.seed ^ size))
    }
}

/// The size in a key of the form `synthetic/<size>/<anything>`; `None` for every other key.
///
/// The size is in bytes, with an optional `KiB`, `MiB` or `GiB`.
pub fn synthetic_size(key: &str) -> Option<u64> {
    let (size, name) = key.strip_prefix(SYNTHETIC_PREFIX)?.split_once('/')?;
    if name.is_empty() {
        return None;
    }
    parse_size(size).ok()
}

/// Reads `64KiB`, `1MiB`, `2GiB`, `1T` or plain bytes; binary units, `K` is the same as `KiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => {
            return Err(format!(
                "size {text:?}: unit {unit:?} is none of B, KiB, MiB, GiB, TiB"
            ));
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("size {text:?}: expected a number such as 4096 or 1MiB"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("size {text:?} is too large"))
}

/// One step of splitmix64: every bit of the input reaches every bit of the output.
pub(crate) fn mix(word: u64) -> u64 {
    let mut word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_equals_the_same_range_of_the_whole() {
        let content = Content::of_key("synthetic/200000/a");
        let mut whole = vec![0; 200_000];
        content.fill(0, &mut whole);
        for (offset, length) in [
            (0, 1),
            (1, 7),
            (3, 9000),
            (4095, 2),
            (65_530, 20),
            (131_071, 68_929),
        ] {
            let mut part = vec![0; length];
            content.fill(offset as u64, &mut part);
            assert_eq!(
                part,
                whole[offset..offset + length],
                "range {offset}+{length}"
            );
        }
    }

    #[test]
    fn pages_keys_and_flipped_bytes_are_told_apart() {
        let content = Content::of_key("synthetic/1MiB/a");
        let mut bytes = vec![0; 3 * TILE_BYTES];
        content.fill(0, &mut bytes);
        assert_ne!(
            bytes[..TILE_BYTES],
            bytes[TILE_BYTES..2 * TILE_BYTES],
            "the tile repeats"
        );
        assert_eq!(content.first_difference(0, &bytes), None);
        assert_eq!(
            Content::of_key("synthetic/1MiB/b").first_difference(0, &bytes),
            Some(0)
        );
        assert_eq!(
            content.first_difference(0, &bytes[1..]),
            Some(0),
            "a shift by one byte"
        );
        bytes[70_000] ^= 1;
        assert_eq!(content.first_difference(0, &bytes), Some(70_000));
        assert_eq!(
            content.first_difference(69_999, &bytes[69_999..]),
            Some(70_000)
        );
    }

    #[test]
    fn synthetic_keys_carry_their_size() {
        assert_eq!(synthetic_size("synthetic/1MiB/7"), Some(1 << 20));
        assert_eq!(synthetic_size("synthetic/12/a/b"), Some(12));
        for key in [
            "synthetic/1MiB",
            "synthetic/1MiB/",
            "synthetic/x/1",
            "other/1/1",
            "synthetic//1",
        ] {
            assert_eq!(synthetic_size(key), None, "{key}");
        }
        assert!(parse_size("99999999999T").is_err());
    }
}
