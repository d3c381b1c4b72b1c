//! ETags that are made of MD5s, as S3 makes them.
//!
//! Pure. It never takes an ETag for an MD5 that does not look like one.

use md5::{Digest, Md5};

/// The MD5 that an ETag of 32 hex digits is.
pub(super) fn md5_of(etag: &str) -> Option<[u8; 16]> {
    let mut md5 = [0; 16];
    hex::decode_to_slice(etag, &mut md5).ok()?;
    Some(md5)
}

/// The ETag of an object made of parts with these ETags, in their order: the MD5 of their MD5s and
/// their number. `None` if there is no part, or one whose ETag is no MD5.
pub(super) fn of_parts<'e>(etags: impl IntoIterator<Item = &'e str>) -> Option<String> {
    let mut all = Md5::new();
    let mut count = 0;
    for etag in etags {
        all.update(md5_of(etag)?);
        count += 1;
    }
    (count > 0).then(|| format!("{}-{count}", hex::encode(all.finalize())))
}

#[cfg(test)]
mod tests {
    use super::of_parts;

    #[test]
    fn the_tag_is_of_the_bytes_of_the_md5s() {
        let hello = "5d41402abc4b2a76b9719d911017c592";
        // The 16 bytes once and twice, hashed by another program.
        assert_eq!(
            of_parts([hello]).as_deref(),
            Some("62109206880d38a4010a98e11243924a-1")
        );
        assert_eq!(
            of_parts([hello, hello]).as_deref(),
            Some("616b22817b80eed9f65c3aa38cd29054-2")
        );
    }

    #[test]
    fn other_tags_say_nothing() {
        let hello = "5d41402abc4b2a76b9719d911017c592";
        assert_eq!(of_parts([]), None);
        for other in ["", "x", "5d41402abc4b2a76b9719d911017c592-1", "0x8D4"] {
            assert_eq!(of_parts([hello, other]), None, "{other}");
        }
    }
}
