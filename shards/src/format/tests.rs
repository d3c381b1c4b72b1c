//! What goes to disk comes back, and what does not belong there is refused.

use super::*;
use proptest::prelude::*;

const PLACE: Place = Place {
    folder: [7; 16],
    shard: 3,
    segment: 9,
    incarnation: 77,
    offset: 8192,
};

fn header(payload: &[u8]) -> RecordHeader {
    let mut sums = PayloadChecksums::default();
    for piece in payload.chunks(10_007) {
        sums.update(piece);
    }
    let (payload_crc64, chunk_crcs) = sums.finish();
    RecordHeader {
        kind: RecordKind::Block,
        state: RecordState::Dirty,
        sequence: 5,
        hash: BlockHash(1 << 100 | 3),
        store_identity: 11,
        volume: "demo".into(),
        key: "a/ключ".into(),
        block_number: 2,
        block_bytes: 1 << 20,
        payload_length: payload.len() as u32,
        payload_crc64,
        chunk_crcs,
        validated_at: 1_700_000_001,
        meta: ObjectMeta {
            size: 3 << 20,
            etag: "abc-3".into(),
            last_modified: 1_700_000_000,
            headers: vec![("content-type".into(), "text/plain".into())],
        },
        store_etag: "0123456789abcdef0123456789abcdef".into(),
        on_its_way: content_name(5, "fedcba9876543210fedcba9876543210"),
    }
}

#[test]
fn a_record_header_survives_the_disk() {
    let payload = vec![5_u8; 200_000];
    let header = header(&payload);
    let mut page = [0xff; PAGE];
    header.encode(&mut page, &PLACE).expect("fits");
    assert_eq!(RecordHeader::decode(&page, &PLACE), Ok(header.clone()));
    assert_eq!(header.payload_crc64, crc64nvme(&payload));
    assert!(header.verify_chunks(0, &payload));
    assert!(header.verify_chunks(1, &payload[CHUNK_BYTES..2 * CHUNK_BYTES]));
    assert!(header.verify_chunks(3, &payload[3 * CHUNK_BYTES..]));
    assert!(
        !header.verify_chunks(4, &payload[..1]),
        "past the last chunk"
    );
    let mut bad = payload;
    bad[CHUNK_BYTES] ^= 1;
    assert!(header.verify_chunks(0, &bad[..CHUNK_BYTES]));
    assert!(!header.verify_chunks(0, &bad));
}

#[test]
fn a_header_is_bound_to_its_place() {
    let mut page = [0; PAGE];
    header(b"x").encode(&mut page, &PLACE).expect("fits");
    for other in [
        Place {
            folder: [8; 16],
            ..PLACE
        },
        Place { shard: 4, ..PLACE },
        Place {
            segment: 8,
            ..PLACE
        },
        Place {
            incarnation: 76,
            ..PLACE
        },
        Place {
            offset: 4096,
            ..PLACE
        },
    ] {
        assert_eq!(RecordHeader::decode(&page, &other), Err(NotOurs::Place));
    }
}

#[test]
fn names_that_do_not_fit_are_refused_whole() {
    let mut large = header(b"x");
    large.meta.headers = vec![("x-amz-meta-a".into(), "v".repeat(4000))];
    let refused = large.encode(&mut [0; PAGE], &PLACE);
    assert!(refused.expect_err("too large").needed_bytes > 4000);
}

#[test]
fn a_segment_header_bears_its_graves() {
    let place = Place { offset: 0, ..PLACE };
    let graves: Vec<Grave> = (0..GRAVES_MAX as u64)
        .map(|i| Grave {
            hash: BlockHash(u128::from(i) << 90),
            sequence: i * 3,
        })
        .collect();
    let mut page = [0xff; PAGE];
    encode_segment_header(&mut page, &place, SegmentPurpose::Free, &graves);
    let header = decode_segment_header(&page, &place).expect("ours");
    assert_eq!(header.graves, graves);
    assert_eq!(
        (header.incarnation, header.purpose),
        (place.incarnation, SegmentPurpose::Free)
    );
    page[PAGE - 1] ^= 1;
    assert!(decode_segment_header(&page, &place).is_err());
}

#[test]
fn the_footer_lists_what_was_given() {
    let entries: Vec<FooterEntry> = (0..300_u32)
        .map(|i| FooterEntry {
            hash: BlockHash(i.into()),
            sequence: i.into(),
            page: i,
            payload_length: 9,
            kind: if i % 7 == 0 {
                RecordKind::Tombstone
            } else {
                RecordKind::Block
            },
            state: match i % 3 {
                0 => RecordState::Dirty,
                _ => RecordState::Clean,
            },
        })
        .collect();
    let segment_bytes = 1 << 24;
    let place = Place {
        offset: segment_bytes - footer_bytes(300),
        ..PLACE
    };
    let bytes = encode_footer(&entries, &place, SegmentPurpose::Main);
    assert_eq!(bytes.len() as u64, footer_bytes(300));
    let (pages, trailer_page) = bytes.split_at(bytes.len() - PAGE);
    let trailer = decode_trailer(trailer_page, &PLACE, segment_bytes).expect("ours");
    assert_eq!(
        (trailer.offset, trailer.purpose),
        (place.offset, SegmentPurpose::Main)
    );
    assert_eq!(decode_entries(pages, &trailer), Ok(entries));
    let other_life = Place {
        incarnation: 1,
        ..PLACE
    };
    assert_eq!(
        decode_trailer(trailer_page, &other_life, segment_bytes),
        Err(NotOurs::Place)
    );
}

proptest! {
    #[test]
    fn any_flipped_bit_of_a_header_is_noticed(bit in 0..PAGE * 8) {
        let mut page = [0; PAGE];
        header(b"payload").encode(&mut page, &PLACE).expect("fits");
        page[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(RecordHeader::decode(&page, &PLACE).is_err());
    }

    #[test]
    fn arbitrary_pages_with_a_good_checksum_never_panic(
        mut page in proptest::collection::vec(any::<u8>(), PAGE),
    ) {
        begin_page(&mut page[..56], RECORD_MAGIC, &PLACE);
        seal_page(&mut page);
        let _ = RecordHeader::decode(&page, &PLACE);
        put(&mut page, 0, &FOOTER_MAGIC);
        if let Ok(trailer) = decode_trailer(&page, &PLACE, 1 << 25) {
            prop_assert!(trailer.offset < 1 << 25);
        }
    }
}
