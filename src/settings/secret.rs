//! Words that must not be seen: secrets that have to be replayed, and hashes of those that need not.
//!
//! Neither type ever prints what it holds, in errors, logs or `{:?}`.

use aws_lc_rs::{constant_time, digest};
use serde::{Deserialize, Deserializer};
use std::fmt;
use zeroize::Zeroizing;

/// A secret that is needed again in clear: a signing key, a session token. Wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret in.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(Zeroizing::new(text.into()))
    }

    /// The secret in clear. For signing and for writing it to its file, never for a message.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Secret::new(text))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

/// SHA-256 of a bearer token. Tokens are random and long, so a plain hash is enough.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; digest::SHA256_OUTPUT_LEN]);

impl TokenHash {
    /// The hash of `token`.
    pub fn of(token: &[u8]) -> Self {
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        TokenHash(hash)
    }

    /// Whether `presented` is the token, in a time that does not depend on where they differ.
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.matches_hash(&TokenHash::of(presented))
    }

    /// As [`TokenHash::matches`], for a presented token that is hashed once and compared with many.
    pub fn matches_hash(&self, presented: &TokenHash) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &presented.0).is_ok()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_prints_what_it_holds() {
        let secret = Secret::new("hush");
        assert_eq!(format!("{secret:?}"), "Secret(hidden)");
        assert_eq!(secret.expose(), "hush");
        assert_eq!(format!("{:?}", TokenHash::of(b"hush")), "TokenHash(hidden)");
    }

    #[test]
    fn a_token_matches_itself_only() {
        let hash = TokenHash::of(b"a token of some length");
        assert!(hash.matches(b"a token of some length"));
        assert!(hash.matches_hash(&TokenHash::of(b"a token of some length")));
        assert!(!hash.matches(b"a token of some lengtH"));
        assert!(!hash.matches(b"a token"));
        assert!(!hash.matches(b""));
    }

    #[test]
    fn the_hash_is_sha256() {
        // FIPS 180-4's example message "abc".
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex::encode(TokenHash::of(b"abc").0), expected);
    }
}
