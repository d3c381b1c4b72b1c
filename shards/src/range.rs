//! Byte ranges: what a reader asked for, against what there is. Pure.

use forebay_io::store::ByteSpan;

/// The part of an object that a reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// The whole object.
    All,
    /// From a byte to the end.
    From(u64),
    /// From a byte to another, both included; the last is at least the first.
    Between(u64, u64),
    /// The last so many bytes.
    Last(u64),
}

/// The range holds no byte of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSatisfiable;

impl RangeSpec {
    /// The bytes of an object of `size` bytes that are meant (RFC 9110 section 14.1.2).
    pub fn resolve(self, size: u64) -> Result<ByteSpan, NotSatisfiable> {
        let span = match self {
            RangeSpec::All => {
                return Ok(ByteSpan {
                    start: 0,
                    end: size,
                });
            }
            RangeSpec::From(start) => ByteSpan { start, end: size },
            RangeSpec::Between(start, last) => ByteSpan {
                start,
                end: last.saturating_add(1).min(size),
            },
            RangeSpec::Last(count) => ByteSpan {
                start: size - count.min(size),
                end: size,
            },
        };
        if span.start < span.end {
            Ok(span)
        } else {
            Err(NotSatisfiable)
        }
    }

    /// The first byte meant, where that is known without the size.
    pub fn first_byte(self) -> Option<u64> {
        match self {
            RangeSpec::All => Some(0),
            RangeSpec::From(start) | RangeSpec::Between(start, _) => Some(start),
            RangeSpec::Last(_) => None,
        }
    }
}

/// The bytes of block `number` that hold part of `span`, counted from the block's start.
pub fn part_of_block(span: ByteSpan, number: u64, block_bytes: u64) -> std::ops::Range<usize> {
    let block_start = number * block_bytes;
    let start = span.start.clamp(block_start, block_start + block_bytes);
    let end = span.end.clamp(start, block_start + block_bytes);
    (start - block_start) as usize..(end - block_start) as usize
}

/// The bytes of an object of `size` bytes that block `number` holds.
pub fn block_span(number: u64, block_bytes: u64, size: u64) -> ByteSpan {
    let start = number.saturating_mul(block_bytes).min(size);
    ByteSpan {
        start,
        end: start.saturating_add(block_bytes).min(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges() {
        let resolve = |spec: RangeSpec| spec.resolve(10).map(|s| (s.start, s.end));
        assert_eq!(resolve(RangeSpec::All), Ok((0, 10)));
        assert_eq!(resolve(RangeSpec::From(9)), Ok((9, 10)));
        assert_eq!(resolve(RangeSpec::From(10)), Err(NotSatisfiable));
        assert_eq!(resolve(RangeSpec::Between(3, u64::MAX)), Ok((3, 10)));
        assert_eq!(resolve(RangeSpec::Between(10, 11)), Err(NotSatisfiable));
        assert_eq!(resolve(RangeSpec::Last(0)), Err(NotSatisfiable));
        assert_eq!(resolve(RangeSpec::Last(99)), Ok((0, 10)));
        assert_eq!(RangeSpec::All.resolve(0).map(|s| s.len()), Ok(0));
        assert_eq!(RangeSpec::Last(5).resolve(0), Err(NotSatisfiable));
    }

    proptest! {
        #[test]
        fn blocks_tile_every_span(size in 1..10_000_u64, a in 0..10_000_u64, b in 0..10_000_u64) {
            let block_bytes = 256;
            let (start, end) = (a.min(b).min(size), a.max(b).min(size));
            let mut next = start;
            for number in 0..size.div_ceil(block_bytes) {
                let part = part_of_block(ByteSpan { start, end }, number, block_bytes);
                if part.is_empty() {
                    continue;
                }
                prop_assert_eq!(number * block_bytes + part.start as u64, next);
                next += part.len() as u64;
                let span = block_span(number, block_bytes, size);
                prop_assert!(part.end as u64 <= span.len());
            }
            prop_assert_eq!(next, end);
        }
    }
}
