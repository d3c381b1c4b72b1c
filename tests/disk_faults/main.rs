//! Sick disks: rows 22 to 32 of the fault catalogue and the exact quota, against the built binary.
//!
//! Real loop devices, tmpfs, ext4 and xfs, and a FUSE file system that fails on command. What holds
//! in every case: no wrong byte, no lost process, no answer that takes for ever, and all is well
//! again without anybody's help once the disk is. These tests need root, `/dev/fuse` and loop
//! devices; where they are missing the tests say so and pass, or fail when
//! `FOREBAY_TEST_REQUIRE_SERVERS` is set.

#[path = "../common/mod.rs"]
mod common;

mod flush;
mod fuse;
mod quota;
mod reads;
mod rig;
mod space;
mod stall;
mod writes;
