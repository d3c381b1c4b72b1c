//! `GET` and `HEAD` of one part of an object, by its number.
//!
//! An object that came whole is one part. Of one that came in several, this proxy knows where they end
//! as long as it remembers how the object was made; no store is asked, for none tells it with an object.
//! What is not known is refused, never guessed.

use super::ObjectRequest;
use super::connection::{Connection, Ended};
use super::finish_with;
use super::get::{self, Reading, Wishes};
use super::head::Head;
use super::limits::CHANGED_RETRIES_MAX;
use super::reply::ErrorReply;
use forebay_io::store::ObjectMeta;
use forebay_shards::messages::ReadError;
use forebay_shards::range::RangeSpec;
use std::sync::Arc;

/// Serves a read of part `number`.
pub async fn serve(
    connection: &mut Connection,
    head: &Head,
    object: &ObjectRequest,
    wishes: &Wishes,
    number: u32,
) -> Result<(), Ended> {
    if head.has("range") {
        let message = "a range and a part's number exclude each other";
        let error = ErrorReply::new(400, "InvalidRequest", message);
        return finish_with(connection, error, object).await;
    }
    match read(connection, object, wishes, number).await {
        Ok((reading, spec, parts)) => {
            get::answer(connection, head, object, wishes, reading, spec, parts).await
        }
        Err(error) => finish_with(connection, error, object).await,
    }
}

/// Reads a part: what was found, which bytes it is, and how many parts there are.
async fn read(
    connection: &Connection,
    object: &ObjectRequest,
    wishes: &Wishes,
    number: u32,
) -> Result<(Reading, RangeSpec, Option<usize>), ErrorReply> {
    for _ in 0..CHANGED_RETRIES_MAX {
        let described = get::read(connection, object, None).await?;
        let (spec, parts) = part_of(connection, object, &described.meta, number).await?;
        let reading = get::read(connection, object, wishes.wanted(spec)).await?;
        let (found, told) = (&reading.meta, &described.meta);
        if found.etag == told.etag && found.size == told.size {
            return Ok((reading, spec, parts));
        }
    }
    Err(ReadError::Changed.into())
}

async fn part_of(
    connection: &Connection,
    object: &ObjectRequest,
    meta: &Arc<ObjectMeta>,
    number: u32,
) -> Result<(RangeSpec, Option<usize>), ErrorReply> {
    let router = &connection.context().router;
    let assembly = router.find_assembly(&object.block(0), meta).await;
    let made_of = assembly.as_ref().map(|assembly| assembly.parts.len());
    let unknown = || {
        ErrorReply::not_implemented("a part of an object of which the parts' ends are not known")
    };
    let count = match made_of.filter(|count| *count > 1) {
        Some(count) => count,
        None => parts_in(meta).ok_or_else(unknown)?,
    };
    if number as usize > count {
        let message = format!("the object has {count} parts");
        return Err(ErrorReply::new(416, "InvalidPartNumber", message));
    }
    if count == 1 {
        let spec = match meta.size {
            // HTTP cannot say an empty part.
            0 => RangeSpec::All,
            _ => RangeSpec::From(0),
        };
        return Ok((spec, None));
    }
    let span = assembly
        .filter(|assembly| assembly.parts.len() == count)
        .and_then(|assembly| assembly.part(number as usize))
        .filter(|span| !span.is_empty());
    let span = span.ok_or_else(unknown)?;
    let spec = RangeSpec::Between(span.start, span.end - 1);
    Ok((spec, Some(count)))
}

/// How many parts an object came in, by its ETag: S3's has their number behind a hyphen. Azure's, which
/// begin with `0x`, do not say.
fn parts_in(meta: &ObjectMeta) -> Option<usize> {
    if meta.etag.starts_with("0x") {
        return None;
    }
    let count = meta.etag.rsplit_once('-').and_then(|(_, count)| {
        let is_number = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| count.parse().ok()).flatten()
    });
    Some(count.filter(|count| *count > 0).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_etag_says_how_many_parts_there_are() {
        let parts = |etag: &str| {
            parts_in(&ObjectMeta {
                etag: etag.into(),
                ..ObjectMeta::default()
            })
        };
        assert_eq!(parts("d41d8cd98f00b204e9800998ecf8427e"), Some(1));
        assert_eq!(parts("d41d8cd98f00b204e9800998ecf8427e-3"), Some(3));
        assert_eq!(parts("0x8DE28F5C1D0A5B0"), None);
        for odd in ["", "a-", "a-b", "a-0", "a-+2", "a-99999999999999999999999"] {
            assert_eq!(parts(odd), Some(1), "{odd}");
        }
    }
}
