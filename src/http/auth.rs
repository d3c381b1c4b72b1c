//! Who may do what: bearer tokens and signatures against volumes. Pure; checked before a body is
//! read.
//!
//! Tokens are compared as hashes in constant time; signatures are verified by `sigv4.rs`, with the
//! secret that is found here. This file never logs a secret and never tells a client more than that
//! it may not.

use super::head::Head;
use super::reply::ErrorReply;
use super::sigv4::{ChunkVerifier, Claim};
use crate::config::{Permission, Volume as VolumeSettings};
use crate::settings::secret::TokenHash;

/// What a request wants to do with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// See objects.
    Read,
    /// Change them.
    Write,
}

/// What a request presents.
pub enum Credential {
    /// Nothing.
    None,
    /// A bearer token, hashed.
    Bearer(TokenHash),
    /// An AWS signature, in a header or in the query, or why what looks like one is refused.
    Signature(Result<Box<Claim>, ErrorReply>),
    /// Something else.
    Unknown,
}

impl Credential {
    /// Reads what a request presents.
    pub fn of(head: &Head, query: &[(String, String)]) -> Credential {
        let mut values = head
            .headers
            .iter()
            .filter(|(name, _)| name == "authorization");
        let (first, second) = (values.next(), values.next());
        if second.is_some() {
            return Credential::Unknown;
        }
        match Claim::of(head, query) {
            Ok(Some(claim)) => return Credential::Signature(Ok(Box::new(claim))),
            Ok(None) => {}
            Err(refusal) => return Credential::Signature(Err(refusal)),
        }
        let Some((_, value)) = first else {
            return Credential::None;
        };
        let split = value.iter().position(|byte| *byte == b' ');
        let (scheme, rest) = value.split_at(split.unwrap_or(value.len()));
        if scheme.eq_ignore_ascii_case(b"bearer") {
            return Credential::Bearer(TokenHash::of(rest.trim_ascii()));
        }
        Credential::Unknown
    }
}

impl Credential {
    /// Whether it is the signature of a presigned URL.
    pub fn is_presigned(&self) -> bool {
        matches!(self, Credential::Signature(Ok(claim)) if claim.is_presigned())
    }
}

/// Who a request is from, as far as it proved that.
#[derive(Clone, Copy)]
pub enum Identity<'a> {
    /// Nobody in particular.
    Anonymous,
    /// Whoever has this token, if it is one of ours.
    Token(&'a TokenHash),
    /// Whoever has the secret key of this access key: the signature was verified.
    Pair(&'a str),
    /// Somebody whose way of proving it is not ours.
    Unknown,
}

/// Finds out who a request is from: a signature is verified with the secret of the key that it
/// names, whichever of `volumes` has it. `now` is in seconds since the Unix epoch. With it comes
/// what verifies the body's chunks, if they are signed, too.
pub fn identify<'a>(
    credential: &'a Credential,
    head: &Head,
    query: &[(String, String)],
    volumes: impl Iterator<Item = &'a VolumeSettings>,
    now: u64,
) -> Result<(Identity<'a>, Option<ChunkVerifier>), ErrorReply> {
    let claim = match credential {
        Credential::None => return Ok((Identity::Anonymous, None)),
        Credential::Bearer(token) => return Ok((Identity::Token(token), None)),
        Credential::Unknown => return Ok((Identity::Unknown, None)),
        Credential::Signature(Err(refusal)) => return Err(refusal.clone()),
        Credential::Signature(Ok(claim)) => claim,
    };
    // The config makes sure that an access key has one secret, in however many volumes.
    let mut keys = volumes.flat_map(|volume| &volume.keys);
    let secret = keys.find_map(|key| match (&key.access_key, &key.secret_key) {
        (Some(access_key), Some(secret)) if access_key == claim.access_key() => Some(secret),
        _ => None,
    });
    let Some(secret) = secret else {
        let message = "no volume has this access key";
        return Err(ErrorReply::new(403, "InvalidAccessKeyId", message)
            .detail("AWSAccessKeyId", claim.access_key()));
    };
    let chunks = claim.verify(head, query, secret, now)?;
    Ok((Identity::Pair(claim.access_key()), chunks))
}

/// Whether `identity` may have `access` to `volume`.
pub fn check(
    identity: Identity<'_>,
    volume: &VolumeSettings,
    access: Access,
) -> Result<(), ErrorReply> {
    match identity {
        Identity::Token(_) | Identity::Pair(_) => match permission(identity, volume) {
            Some(Permission::ReadWrite) => Ok(()),
            Some(Permission::Read) if access == Access::Read => Ok(()),
            Some(Permission::Read) => Err(ErrorReply::denied("this key may only read")),
            None => Err(not_for_this_volume()),
        },
        Identity::Anonymous if volume.anonymous_read && access == Access::Read => Ok(()),
        Identity::Anonymous | Identity::Unknown => Err(unauthorized()),
    }
}

/// The best that somebody may do with a volume. Looks at every key, found or not, so that the time
/// says nothing about which.
fn permission(identity: Identity<'_>, volume: &VolumeSettings) -> Option<Permission> {
    let mut best = None;
    for key in &volume.keys {
        let matches = match identity {
            Identity::Token(token) => key
                .token
                .as_ref()
                .is_some_and(|known| known.matches_hash(token)),
            Identity::Pair(name) => key.access_key.as_deref() == Some(name),
            Identity::Anonymous | Identity::Unknown => false,
        };
        if matches && best != Some(Permission::ReadWrite) {
            best = Some(key.permission);
        }
    }
    best
}

/// Whether somebody has a key of any volume at all.
pub fn is_known<'a>(
    identity: Identity<'_>,
    mut volumes: impl Iterator<Item = &'a VolumeSettings>,
) -> bool {
    volumes.any(|volume| permission(identity, volume).is_some())
}

/// What somebody is told who asks for a volume that does not exist and has no key to know it.
pub fn refuse_stranger(identity: Identity<'_>) -> ErrorReply {
    match identity {
        Identity::Token(_) | Identity::Pair(_) => not_for_this_volume(),
        Identity::Anonymous | Identity::Unknown => unauthorized(),
    }
}

/// Whether `credential` is the operator's.
pub fn check_operator(
    credential: &Credential,
    operator: Option<&TokenHash>,
) -> Result<(), ErrorReply> {
    match (credential, operator) {
        (Credential::Bearer(token), Some(known)) if known.matches_hash(token) => Ok(()),
        (Credential::Bearer(_), _) => Err(ErrorReply::denied("this is not the operator's token")),
        (Credential::Signature(_), _) => Err(ErrorReply::denied(
            "control paths take the operator's token, not signatures",
        )),
        _ => Err(
            ErrorReply::new(401, "AccessDenied", "the operator's token is needed")
                .with("www-authenticate", "Bearer"),
        ),
    }
}

fn not_for_this_volume() -> ErrorReply {
    ErrorReply::denied("this key is not for this volume")
}

/// S3 answers strangers 403, and its clients know no other status for it.
fn unauthorized() -> ErrorReply {
    let message = "a key is needed: `Authorization: Bearer TOKEN`, or an AWS signature (V4)";
    ErrorReply::denied(message).with("www-authenticate", "Bearer")
}
