//! Who may do what: bearer tokens against volumes. Pure; checked before a body is read.
//!
//! Tokens are compared as hashes in constant time. This file never logs one and never tells a
//! client more than that it may not.

use super::head::Head;
use super::reply::ErrorReply;
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
    /// An AWS signature, in a header or in the query.
    Signature,
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
        let Some((_, value)) = first else {
            let signed = query
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("x-amz-signature"));
            return if signed {
                Credential::Signature
            } else {
                Credential::None
            };
        };
        if second.is_some() {
            return Credential::Unknown;
        }
        let split = value.iter().position(|byte| *byte == b' ');
        let (scheme, rest) = value.split_at(split.unwrap_or(value.len()));
        if scheme.eq_ignore_ascii_case(b"bearer") {
            return Credential::Bearer(TokenHash::of(rest.trim_ascii()));
        }
        let is_signature = scheme.starts_with(b"AWS4-") || scheme == b"AWS";
        if is_signature {
            Credential::Signature
        } else {
            Credential::Unknown
        }
    }
}

/// Whether `credential` allows `access` to `volume`.
pub fn check(
    credential: &Credential,
    volume: &VolumeSettings,
    access: Access,
) -> Result<(), ErrorReply> {
    match credential {
        Credential::Bearer(token) => match permission(token, volume) {
            Some(Permission::ReadWrite) => Ok(()),
            Some(Permission::Read) if access == Access::Read => Ok(()),
            Some(Permission::Read) => Err(ErrorReply::denied("this token may only read")),
            None => Err(ErrorReply::denied("this token is not for this volume")),
        },
        Credential::None if volume.anonymous_read && access == Access::Read => Ok(()),
        Credential::None => Err(unauthorized("a bearer token is needed")),
        Credential::Signature => Err(no_signatures()),
        Credential::Unknown => Err(unauthorized("only `Authorization: Bearer TOKEN` is known")),
    }
}

/// The best that a token may do with a volume. Looks at every key, found or not, so that the time
/// says nothing about which.
fn permission(token: &TokenHash, volume: &VolumeSettings) -> Option<Permission> {
    let mut best = None;
    for key in &volume.keys {
        let matches = key
            .token
            .as_ref()
            .is_some_and(|known| known.matches_hash(token));
        if matches && best != Some(Permission::ReadWrite) {
            best = Some(key.permission);
        }
    }
    best
}

/// Whether a token opens any volume at all.
pub fn is_known<'a>(
    credential: &Credential,
    mut volumes: impl Iterator<Item = &'a VolumeSettings>,
) -> bool {
    match credential {
        Credential::Bearer(token) => volumes.any(|volume| permission(token, volume).is_some()),
        _ => false,
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
        (Credential::Signature, _) => Err(no_signatures()),
        _ => Err(unauthorized("the operator's token is needed")),
    }
}

fn unauthorized(message: &str) -> ErrorReply {
    ErrorReply::new(401, "AccessDenied", message).with("www-authenticate", "Bearer")
}

fn no_signatures() -> ErrorReply {
    ErrorReply::denied("AWS signatures are not served yet; use `Authorization: Bearer TOKEN`")
}
