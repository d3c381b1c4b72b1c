//! Checksums of an object that was made from parts.
//!
//! Pure. A checksum of the checksums of the parts is S3's `COMPOSITE`; of the whole object's bytes
//! `FULL_OBJECT`, of which only CRC64-NVME is known here without reading them again. It never keeps
//! a checksum that was not computed here.

use super::Trouble;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use forebay_io::multipart::CompleteRequest;
use forebay_io::store::CHECKSUM_PREFIX;

const CRC64NVME: &str = "x-amz-checksum-crc64nvme";
const ALGORITHM: &str = "x-amz-checksum-algorithm";
const KIND: &str = "x-amz-checksum-type";
const WHOLE: &str = "FULL_OBJECT";
const OF_PARTS: &str = "COMPOSITE";

/// The header that tells a checksum, by its name in S3's documents (`ChecksumCRC32`).
pub(super) fn header_of(name: &str) -> Option<String> {
    let algorithm = name.strip_prefix("Checksum")?;
    Some(format!(
        "{CHECKSUM_PREFIX}{}",
        algorithm.to_ascii_lowercase()
    ))
}

/// Turns the headers that an upload was begun with into those of its object: what was asked for
/// checksums goes, what is known of them comes. `parts` are the headers of the parts, in the order
/// of the request's; `crc64nvme` is of the whole object.
pub(super) fn set_checksums(
    headers: &mut Vec<(String, String)>,
    request: &CompleteRequest,
    parts: Vec<&Vec<(String, String)>>,
    crc64nvme: Option<u64>,
) -> Result<(), Trouble> {
    let asked = |name: &str| {
        let found = headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.to_ascii_lowercase())
    };
    let (algorithm, kind) = (asked(ALGORITHM), asked(KIND));
    headers.retain(|(name, _)| !name.starts_with(CHECKSUM_PREFIX));
    let whole = crc64nvme.map(|crc| STANDARD.encode(crc.to_be_bytes()));
    let told = request.headers.iter().find(|(name, _)| name == CRC64NVME);
    if let (Some(whole), Some((_, told))) = (&whole, told)
        && whole != told
    {
        return Err(Trouble::Damaged(
            "the parts do not make the checksum announced",
        ));
    }
    let Some(algorithm) = algorithm else {
        return Ok(());
    };
    if algorithm == "crc64nvme" {
        if let Some(whole) = whole {
            headers.push((CRC64NVME.to_owned(), whole));
            headers.push((KIND.to_owned(), WHOLE.to_owned()));
        }
        return Ok(());
    }
    if kind.is_some_and(|kind| kind != OF_PARTS.to_ascii_lowercase()) {
        return Ok(());
    }
    let name = format!("{CHECKSUM_PREFIX}{algorithm}");
    if let Some(value) = of_parts(&algorithm, &name, request, &parts) {
        let value = format!("{}-{}", STANDARD.encode(value), parts.len());
        headers.push((name, value));
        headers.push((KIND.to_owned(), OF_PARTS.to_owned()));
    }
    Ok(())
}

/// The checksum of the parts' checksums; `None` if one has none.
fn of_parts(
    algorithm: &str,
    name: &str,
    request: &CompleteRequest,
    parts: &[&Vec<(String, String)>],
) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for (kept, listed) in parts.iter().zip(&request.parts) {
        let kept = kept.iter().find(|(found, _)| found == name);
        let mut told = listed.checksums.iter();
        let told = told.find(|(found, _)| header_of(found).as_deref() == Some(name));
        let (_, value) = kept.or(told)?;
        all.extend(STANDARD.decode(value).ok()?);
    }
    let crc = |algorithm| {
        let crc = crc_fast::checksum(algorithm, &all) as u32;
        crc.to_be_bytes().to_vec()
    };
    match algorithm {
        "crc32" => Some(crc(CrcAlgorithm::Crc32IsoHdlc)),
        "crc32c" => Some(crc(CrcAlgorithm::Crc32Iscsi)),
        "sha1" => Some(digest(&SHA1_FOR_LEGACY_USE_ONLY, &all).as_ref().to_vec()),
        "sha256" => Some(digest(&SHA256, &all).as_ref().to_vec()),
        _ => None,
    }
}
