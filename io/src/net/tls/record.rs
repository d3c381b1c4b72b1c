//! TLS records: their heads, and content sealed into them and opened out of them (RFC 8446 section 5, RFC 5246
//! section 6.2, RFC 5288, RFC 7905).
//!
//! Pure: bytes in, bytes out. It counts records, for their nonces, and never meets a socket or decides what a
//! message means.

use super::aead::{Aead, Failed, Kind, NONCE_BYTES, TAG_BYTES};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion};
use std::ops::Range;

/// Content of a record, bytes, at most.
pub(super) const CONTENT_BYTES_MAX: usize = 1 << 14;

/// A record's head: type, version, length.
pub(super) const HEAD_BYTES: usize = 5;

/// What TLS 1.2 sends of AES-GCM's nonce.
const EXPLICIT_NONCE_BYTES: usize = 8;

/// The most that a record is longer than its content, of what we seal.
pub(super) const OVERHEAD_BYTES_MAX: usize = HEAD_BYTES + EXPLICIT_NONCE_BYTES + TAG_BYTES;

/// What a record may be longer than content of the greatest length, in TLS 1.3 and before.
const EXPANSION_BYTES_MAX: usize = 256;
const EXPANSION_BYTES_MAX_12: usize = 2048;

/// The longest record of all, bytes.
pub(super) const RECORD_BYTES_MAX: usize = HEAD_BYTES + CONTENT_BYTES_MAX + EXPANSION_BYTES_MAX_12;

/// Records that one AES-GCM key may seal (RFC 8446 section 5.5: 2^24.5 of full size; rustls uses the same).
const AES_GCM_RECORDS_MAX: u64 = 1 << 24;

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// For the peer's TLS: `[level, description]`.
    Alert = 21,
    /// Messages that belong to the handshake, also those after it.
    Handshake = 22,
    /// What TLS is there for.
    Data = 23,
}

/// What is wrong with a record, or with what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordError {
    /// Not sealed with the key, or changed on its way.
    BadMac,
    /// Longer than may be.
    Overflow,
    /// Nothing that may be here.
    Unexpected,
    /// What it carries makes no sense.
    Malformed,
    /// As many were sealed as the key is good for.
    Exhausted,
}

impl RecordError {
    /// As an alert names it (RFC 8446 section 6).
    pub fn alert(self) -> u8 {
        match self {
            RecordError::BadMac => 20,
            RecordError::Overflow => 22,
            RecordError::Unexpected => 10,
            RecordError::Malformed => 50,
            RecordError::Exhausted => 80,
        }
    }
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RecordError::BadMac => "a record was changed on its way, or is of another key",
            RecordError::Overflow => "a record is longer than TLS allows",
            RecordError::Unexpected => "a record that may not come here",
            RecordError::Malformed => "a record makes no sense",
            RecordError::Exhausted => "a key has encrypted as much as it may",
        })
    }
}

impl From<Failed> for RecordError {
    fn from(_: Failed) -> Self {
        RecordError::BadMac
    }
}

/// Length of the record in front of `bytes`, with its head, once that is there whole. It may reach beyond `bytes`.
pub(super) fn record_length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some((head, _)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Ok(None);
    };
    if !(20..=23).contains(&head[0]) || head[1] != 3 {
        return Err(RecordError::Unexpected);
    }
    let length = HEAD_BYTES + usize::from(u16::from_be_bytes([head[3], head[4]]));
    match length > RECORD_BYTES_MAX {
        true => Err(RecordError::Overflow),
        false => Ok(Some(length)),
    }
}

/// The key of one direction and how many records it has served.
pub(super) struct RecordKey {
    aead: Aead,
    kind: Kind,
    iv: [u8; NONCE_BYTES],
    is_13: bool,
    sequence: u64,
    /// Records that it may still seal.
    left: u64,
}

/// What the associated data of a record is; it never leaves the stack.
struct Associated {
    bytes: [u8; 13],
    length: usize,
}

impl RecordKey {
    /// A key whose next record is the one of that number.
    pub fn new(
        version: ProtocolVersion,
        sequence: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> Result<RecordKey, RecordError> {
        let (aead, kind, iv) = Aead::new(secrets)?;
        let is_13 = match version {
            ProtocolVersion::TLSv1_3 => true,
            ProtocolVersion::TLSv1_2 => false,
            _ => return Err(RecordError::Unexpected),
        };
        let good_for = match kind {
            Kind::AesGcm => AES_GCM_RECORDS_MAX,
            Kind::ChaCha20 => u64::MAX,
        };
        Ok(RecordKey {
            aead,
            kind,
            iv,
            is_13,
            sequence,
            left: good_for.saturating_sub(sequence),
        })
    }

    /// Whether records are those of TLS 1.3.
    pub fn is_13(&self) -> bool {
        self.is_13
    }

    /// Whether another key is due before the next `records`.
    pub fn is_worn_before(&self, records: u64) -> bool {
        self.left < records
    }

    #[cfg(test)]
    pub fn wear(&mut self, left: u64) {
        self.left = left;
    }

    fn explicit_bytes(&self) -> usize {
        match !self.is_13 && self.kind == Kind::AesGcm {
            true => EXPLICIT_NONCE_BYTES,
            false => 0,
        }
    }

    fn nonce(&self) -> [u8; NONCE_BYTES] {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        nonce
    }

    fn associated(&self, head: &[u8], content_bytes: usize) -> Associated {
        let mut bytes = [0; 13];
        if self.is_13 {
            bytes[..HEAD_BYTES].copy_from_slice(&head[..HEAD_BYTES]);
            return Associated {
                bytes,
                length: HEAD_BYTES,
            };
        }
        bytes[..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[8..11].copy_from_slice(&head[..3]);
        bytes[11..].copy_from_slice(&(content_bytes as u16).to_be_bytes());
        Associated { bytes, length: 13 }
    }

    /// Seals `plain`, of at most [`CONTENT_BYTES_MAX`], into a record at the front of `out`, which has room for
    /// [`OVERHEAD_BYTES_MAX`] more than that; returns the record's length.
    pub fn seal(
        &mut self,
        content: Content,
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        debug_assert!(plain.len() <= CONTENT_BYTES_MAX);
        let left = self.left.checked_sub(1).ok_or(RecordError::Exhausted)?;
        let (outer, inner): (u8, &[u8]) = match self.is_13 {
            true => (Content::Data as u8, &[content as u8]),
            false => (content as u8, &[]),
        };
        let explicit = self.explicit_bytes();
        let body = explicit + plain.len() + inner.len() + TAG_BYTES;
        let (head, rest) = out.split_at_mut(HEAD_BYTES);
        let [high, low] = (body as u16).to_be_bytes();
        head.copy_from_slice(&[outer, 3, 3, high, low]);
        let nonce = self.nonce();
        rest[..explicit].copy_from_slice(&nonce[NONCE_BYTES - explicit..]);
        let associated = self.associated(head, plain.len());
        let associated = &associated.bytes[..associated.length];
        self.aead
            .seal(nonce, associated, plain, inner, &mut rest[explicit..body])?;
        (self.sequence, self.left) = (self.sequence + 1, left);
        Ok(HEAD_BYTES + body)
    }

    /// Room that [`RecordKey::open_into`] needs for a record of that length.
    pub fn room_for(&self, record_bytes: usize) -> usize {
        record_bytes.saturating_sub(HEAD_BYTES + self.explicit_bytes() + TAG_BYTES)
    }

    /// Opens one whole record into the front of `target`, which has [`RecordKey::room_for`] it; returns what it carries
    /// and how many bytes of it. Bytes behind those may have been written as well.
    pub fn open_into(
        &mut self,
        record: &mut [u8],
        target: &mut [u8],
    ) -> Result<(Content, usize), RecordError> {
        let place = self.check(record)?;
        let (nonce, associated) = self.opening(record, &place);
        let target = &mut target[..place.len() - TAG_BYTES];
        let associated = &associated.bytes[..associated.length];
        self.aead
            .open_into(nonce, associated, &mut record[place], target)?;
        self.sequence += 1;
        self.judge(record[0], target)
    }

    /// Opens one whole record in place; returns what it carries and where.
    pub fn open_in_place(
        &mut self,
        record: &mut [u8],
    ) -> Result<(Content, Range<usize>), RecordError> {
        let place = self.check(record)?;
        let (nonce, associated) = self.opening(record, &place);
        let associated = &associated.bytes[..associated.length];
        self.aead
            .open_in_place(nonce, associated, &mut record[place.clone()])?;
        self.sequence += 1;
        let plain = &record[place.start..place.end - TAG_BYTES];
        let (content, bytes) = self.judge(record[0], plain)?;
        Ok((content, place.start..place.start + bytes))
    }

    /// Where ciphertext and tag are, in a record whose lengths are good.
    fn check(&self, record: &[u8]) -> Result<Range<usize>, RecordError> {
        if self.is_13 && record[0] != Content::Data as u8 {
            return Err(RecordError::Unexpected);
        }
        let start = HEAD_BYTES + self.explicit_bytes();
        let expansion = match self.is_13 {
            true => EXPANSION_BYTES_MAX,
            false => EXPANSION_BYTES_MAX_12,
        };
        if record.len() > HEAD_BYTES + CONTENT_BYTES_MAX + expansion {
            return Err(RecordError::Overflow);
        }
        match record.len() < start + TAG_BYTES + usize::from(self.is_13) {
            true => Err(RecordError::BadMac),
            false => Ok(start..record.len()),
        }
    }

    fn opening(&self, record: &[u8], place: &Range<usize>) -> ([u8; NONCE_BYTES], Associated) {
        let mut nonce = self.nonce();
        let explicit = self.explicit_bytes();
        nonce[NONCE_BYTES - explicit..].copy_from_slice(&record[HEAD_BYTES..HEAD_BYTES + explicit]);
        (nonce, self.associated(record, place.len() - TAG_BYTES))
    }

    /// What opened bytes are, and how many of them: TLS 1.3 hides the type behind the content, and zeros behind that.
    fn judge(&self, outer: u8, plain: &[u8]) -> Result<(Content, usize), RecordError> {
        let (kind, bytes) = match self.is_13 {
            true => {
                if plain.len() > CONTENT_BYTES_MAX + 1 {
                    return Err(RecordError::Overflow);
                }
                let last = plain.iter().rposition(|byte| *byte != 0);
                let last = last.ok_or(RecordError::Unexpected)?;
                (plain[last], last)
            }
            false => (outer, plain.len()),
        };
        if bytes > CONTENT_BYTES_MAX {
            return Err(RecordError::Overflow);
        }
        let content = match kind {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            _ => return Err(RecordError::Unexpected),
        };
        Ok((content, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3];

    fn key(version: ProtocolVersion, is_chacha: bool) -> RecordKey {
        let (key, iv) = (AeadKey::from([3; 32]), Iv::copy(&[5; NONCE_BYTES]));
        let secrets = match is_chacha {
            true => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
            false => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
        };
        RecordKey::new(version, 7, &secrets).expect("a good key")
    }

    fn sealed(key: &mut RecordKey, content: Content, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; plain.len() + OVERHEAD_BYTES_MAX];
        let length = key
            .seal(content, plain, &mut out)
            .expect("room and a fresh key");
        out.truncate(length);
        out
    }

    proptest! {
        /// What one end seals, the other opens, in either way; records out of their order are refused.
        #[test]
        fn records_open_as_they_were_sealed(
            is_12 in any::<bool>(), is_chacha in any::<bool>(), in_place in any::<bool>(),
            plain in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let version = VERSIONS[usize::from(!is_12)];
            let (mut ours, mut theirs) = (key(version, is_chacha), key(version, is_chacha));
            for content in [Content::Data, Content::Alert, Content::Handshake, Content::Data] {
                let mut record = sealed(&mut ours, content, &plain);
                prop_assert_eq!(record_length(&record), Ok(Some(record.len())));
                let opened = match in_place {
                    true => {
                        let (content, place) = theirs.open_in_place(&mut record).expect("ours");
                        (content, record[place].to_vec())
                    }
                    false => {
                        let mut target = vec![0; theirs.room_for(record.len()) + 3];
                        let (content, count) = theirs.open_into(&mut record, &mut target).expect("ours");
                        (content, target[..count].to_vec())
                    }
                };
                prop_assert_eq!(opened, (content, plain.clone()));
            }
            sealed(&mut ours, Content::Data, &plain);
            let mut second = sealed(&mut ours, Content::Data, &plain);
            prop_assert_eq!(theirs.open_in_place(&mut second), Err(RecordError::BadMac));
        }

        /// No bytes make it panic or open.
        #[test]
        fn what_nobody_sealed_is_refused(
            is_12 in any::<bool>(), is_chacha in any::<bool>(),
            kind in 20..24_u8, body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut record = vec![kind, 3, 3, 0, body.len() as u8];
            record.extend_from_slice(&body);
            let version = VERSIONS[usize::from(!is_12)];
            let mut theirs = key(version, is_chacha);
            prop_assert!(theirs.open_in_place(&mut record.clone()).is_err());
            let mut target = vec![0; record.len()];
            prop_assert!(theirs.open_into(&mut record, &mut target).is_err());
        }
    }

    #[test]
    fn heads_are_judged_before_anything_is_waited_for() {
        assert_eq!(record_length(&[23, 3, 3, 0]), Ok(None));
        assert_eq!(record_length(&[23, 3, 3, 1, 2]), Ok(Some(5 + 258)));
        assert_eq!(
            record_length(b"GET / HTTP/1.1"),
            Err(RecordError::Unexpected)
        );
        assert_eq!(
            record_length(&[23, 2, 0, 0, 1]),
            Err(RecordError::Unexpected)
        );
        assert_eq!(
            record_length(&[24, 3, 3, 0, 1]),
            Err(RecordError::Unexpected)
        );
        assert_eq!(
            record_length(&[23, 3, 3, 0xff, 0xff]),
            Err(RecordError::Overflow)
        );
    }

    #[test]
    fn a_record_that_is_too_long_is_refused_though_it_is_sealed_well() {
        for version in VERSIONS {
            let (ours, mut theirs) = (key(version, false), key(version, false));
            let body = CONTENT_BYTES_MAX + 1;
            let inner: &[u8] = if ours.is_13 { &[23] } else { &[] };
            let explicit = ours.explicit_bytes();
            let mut out = vec![0; HEAD_BYTES + explicit + body + inner.len() + TAG_BYTES];
            let [high, low] = ((out.len() - HEAD_BYTES) as u16).to_be_bytes();
            out[..HEAD_BYTES].copy_from_slice(&[23, 3, 3, high, low]);
            let nonce = ours.nonce();
            out[HEAD_BYTES..HEAD_BYTES + explicit]
                .copy_from_slice(&nonce[NONCE_BYTES - explicit..]);
            let associated = ours.associated(&out, body);
            let associated = &associated.bytes[..associated.length];
            let place = &mut out[HEAD_BYTES + explicit..];
            ours.aead
                .seal(nonce, associated, &vec![1; body], inner, place)
                .expect("room");
            assert_eq!(
                theirs.open_in_place(&mut out),
                Err(RecordError::Overflow),
                "{version:?}"
            );
        }
    }

    #[test]
    fn a_key_seals_as_many_records_as_it_is_good_for() {
        let mut ours = key(ProtocolVersion::TLSv1_3, false);
        assert!(!ours.is_worn_before(1000));
        ours.wear(2);
        assert!(ours.is_worn_before(3) && !ours.is_worn_before(2));
        let mut out = [0; 64];
        assert!(ours.seal(Content::Data, b"a", &mut out).is_ok());
        assert!(ours.seal(Content::Data, b"a", &mut out).is_ok());
        let third = ours.seal(Content::Data, b"a", &mut out);
        assert_eq!(third, Err(RecordError::Exhausted));
    }
}
