//! The cipher of one direction of a connection, by whichever library is faster on this processor.
//!
//! This file owns keys and calls into the libraries. It knows nothing of records and counts no nonces: its caller
//! must never use one twice with a key.

use crate::net::ciphers::ring_is_faster;
use aws_lc_rs::aead as wide;
use ring::aead as narrow;
use rustls::ConnectionTrafficSecrets;

/// Bytes of an authentication tag, of every cipher here.
pub(super) const TAG_BYTES: usize = 16;

/// Bytes of a nonce, of every cipher here.
pub(super) const NONCE_BYTES: usize = 12;

/// Something was not sealed by the holder of the key, or lengths do not fit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// Which cipher; decides the shape of TLS 1.2's nonces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// AES-GCM of either key length.
    AesGcm,
    /// ChaCha20-Poly1305.
    ChaCha20,
}

/// A key that is ready for use.
pub(super) enum Aead {
    /// aws-lc's.
    Wide(wide::LessSafeKey),
    /// ring's.
    Narrow(Box<narrow::LessSafeKey>),
}

impl Aead {
    /// The key of negotiated secrets, with its kind and the part of the nonces that does not change.
    pub fn new(
        secrets: &ConnectionTrafficSecrets,
    ) -> Result<(Aead, Kind, [u8; NONCE_BYTES]), Failed> {
        Self::of_library(secrets, ring_is_faster())
    }

    fn of_library(
        secrets: &ConnectionTrafficSecrets,
        of_ring: bool,
    ) -> Result<(Aead, Kind, [u8; NONCE_BYTES]), Failed> {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (kind, key, iv, of_wide, of_narrow) = match secrets {
            Aes128Gcm { key, iv } => (
                Kind::AesGcm,
                key,
                iv,
                &wide::AES_128_GCM,
                &narrow::AES_128_GCM,
            ),
            Aes256Gcm { key, iv } => (
                Kind::AesGcm,
                key,
                iv,
                &wide::AES_256_GCM,
                &narrow::AES_256_GCM,
            ),
            Chacha20Poly1305 { key, iv } => (
                Kind::ChaCha20,
                key,
                iv,
                &wide::CHACHA20_POLY1305,
                &narrow::CHACHA20_POLY1305,
            ),
            _ => return Err(Failed),
        };
        let aead = match of_ring {
            false => wide::UnboundKey::new(of_wide, key.as_ref())
                .map(|key| Aead::Wide(wide::LessSafeKey::new(key)))
                .map_err(|_| Failed)?,
            true => narrow::UnboundKey::new(of_narrow, key.as_ref())
                .map(|key| Aead::Narrow(Box::new(narrow::LessSafeKey::new(key))))
                .map_err(|_| Failed)?,
        };
        Ok((aead, kind, iv.as_ref().try_into().map_err(|_| Failed)?))
    }

    /// Encrypts `plain` and then `extra` into `out`, whose length is that of both and a tag.
    pub fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        associated: &[u8],
        plain: &[u8],
        extra: &[u8],
        out: &mut [u8],
    ) -> Result<(), Failed> {
        if out.len() != plain.len() + extra.len() + TAG_BYTES {
            return Err(Failed);
        }
        match self {
            Aead::Wide(key) => {
                let (sealed, rest) = out.split_at_mut(plain.len());
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                let associated = wide::Aad::from(associated);
                key.seal_out_of_place_scatter(nonce, associated, plain, sealed, extra, rest)
                    .map_err(|_| Failed)
            }
            Aead::Narrow(key) => {
                let (content, tag_place) = out.split_at_mut(plain.len() + extra.len());
                content[..plain.len()].copy_from_slice(plain);
                content[plain.len()..].copy_from_slice(extra);
                let nonce = narrow::Nonce::assume_unique_for_key(nonce);
                let associated = narrow::Aad::from(associated);
                let tag = key
                    .seal_in_place_separate_tag(nonce, associated, content)
                    .map_err(|_| Failed)?;
                tag_place.copy_from_slice(tag.as_ref());
                Ok(())
            }
        }
    }

    /// Decrypts in place; the content is then in front of where the tag was.
    pub fn open_in_place(
        &self,
        nonce: [u8; NONCE_BYTES],
        associated: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), Failed> {
        match self {
            Aead::Wide(key) => {
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                let opened = key.open_in_place(nonce, wide::Aad::from(associated), sealed);
                opened.map(drop).map_err(|_| Failed)
            }
            Aead::Narrow(key) => {
                let nonce = narrow::Nonce::assume_unique_for_key(nonce);
                let opened = key.open_in_place(nonce, narrow::Aad::from(associated), sealed);
                opened.map(drop).map_err(|_| Failed)
            }
        }
    }

    /// Decrypts into `out`, which is as long as `sealed` without its tag. What stands in either after a failure means
    /// nothing.
    pub fn open_into(
        &self,
        nonce: [u8; NONCE_BYTES],
        associated: &[u8],
        sealed: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), Failed> {
        let length = sealed.len().checked_sub(TAG_BYTES).ok_or(Failed)?;
        if out.len() != length {
            return Err(Failed);
        }
        match self {
            Aead::Wide(key) => {
                let (content, tag) = sealed.split_at(length);
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                let associated = wide::Aad::from(associated);
                key.open_separate_gather(nonce, associated, content, tag, out)
                    .map_err(|_| Failed)
            }
            Aead::Narrow(_) => {
                self.open_in_place(nonce, associated, sealed)?;
                out.copy_from_slice(&sealed[..length]);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    fn secrets() -> [ConnectionTrafficSecrets; 2] {
        let key = || AeadKey::from([7; 32]);
        let iv = || Iv::copy(&[9; NONCE_BYTES]);
        [
            ConnectionTrafficSecrets::Aes256Gcm {
                key: key(),
                iv: iv(),
            },
            ConnectionTrafficSecrets::Chacha20Poly1305 {
                key: key(),
                iv: iv(),
            },
        ]
    }

    /// What either library seals, both open, in both ways; a bit changed anywhere is noticed.
    #[test]
    fn the_libraries_seal_alike_and_notice_every_change() {
        for secrets in secrets() {
            let [wide, narrow] = [false, true].map(|of_ring| {
                Aead::of_library(&secrets, of_ring)
                    .expect("a key of that length")
                    .0
            });
            let plain: Vec<u8> = (0..1000_u32).map(|at| at as u8).collect();
            let sealed = [&wide, &narrow].map(|aead| {
                let mut out = vec![0; plain.len() + 1 + TAG_BYTES];
                aead.seal([1; 12], b"head", &plain, &[23], &mut out)
                    .expect("room");
                out
            });
            assert_eq!(sealed[0], sealed[1]);
            for aead in [&wide, &narrow] {
                let mut out = vec![0; plain.len() + 1];
                let mut whole = sealed[0].clone();
                aead.open_into([1; 12], b"head", &mut whole, &mut out)
                    .expect("whole");
                assert_eq!((&out[..plain.len()], out[plain.len()]), (&plain[..], 23));
                let mut whole = sealed[0].clone();
                aead.open_in_place([1; 12], b"head", &mut whole)
                    .expect("whole");
                assert_eq!(&whole[..out.len()], &out);
                for at in [0, plain.len(), plain.len() + 1, plain.len() + TAG_BYTES] {
                    let mut broken = sealed[0].clone();
                    broken[at] ^= 1;
                    let opened = aead.open_into([1; 12], b"head", &mut broken, &mut out);
                    assert_eq!(opened, Err(Failed), "byte {at}");
                    let mut broken = sealed[0].clone();
                    broken[at] ^= 1;
                    let opened = aead.open_in_place([1; 12], b"head", &mut broken);
                    assert_eq!(opened, Err(Failed), "byte {at}");
                }
                for (nonce, head) in [([2; 12], b"head"), ([1; 12], b"hand")] {
                    let opened = aead.open_into(nonce, head, &mut sealed[0].clone(), &mut out);
                    assert_eq!(opened, Err(Failed));
                }
            }
        }
    }
}
