//! Credentials and certificates that are wrong, and put right on disk while the proxy runs.

use crate::common::proxy::StoreSpec;
use crate::common::stores::S3Server;
use crate::common::{Setup, VOLUME};
use crate::rig::{Rig, server, setup, stored_key, wait_until};
use forebay_bench::stub::{Stub, StubOptions};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Replaces a file by a rename, as tools that rotate credentials do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).expect("mode");
    std::fs::rename(new, path).expect("renamed");
}

fn credentials(secret: &str) -> String {
    let key = StubOptions::default().access_key;
    format!("blockUser = \"{key}\"\nblockPass = \"{secret}\"\n")
}

/// A proxy whose credentials come from a file, so far with a wrong secret.
fn rig_with_creds_file(path: &Path) -> Rig {
    let stub = Stub::start(StubOptions::default()).expect("the stub starts");
    replace(path, &credentials("not-the-secret"));
    let server = S3Server {
        key: String::new(),
        ..server(&stub.url())
    };
    let proxy = Setup {
        flags: vec!["--credsFile".to_string(), path.display().to_string()],
        ..setup(server)
    }
    .start();
    Rig::of(proxy, stub)
}

#[test]
fn row_40_reads_go_on_with_credentials_that_were_rotated() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("creds");
    let rig = rig_with_creds_file(&path);
    let body = rig.content(10_000);
    rig.store_directly("k", &body, 0);
    assert_eq!(rig.proxy.get("k").status, 502);
    // A file that is refused changes nothing and is named once.
    replace(&path, "blockUser = \"me\"\n");
    let refusal = "changed credentials refused";
    wait_until("it is refused", || rig.proxy.stderr().contains(refusal));
    replace(&path, &credentials(&StubOptions::default().secret_key));
    wait_until("the new ones are taken", || {
        rig.proxy.get("k").status == 200
    });
    assert_eq!(rig.proxy.get("k").body, body);
    let log = rig.proxy.stderr();
    assert_eq!(log.matches(refusal).count(), 1, "{log}");
    let secret = StubOptions::default().secret_key;
    assert!(!log.contains(&secret) && !log.contains("not-the-secret"));
}

#[test]
fn row_40_uploads_wait_for_credentials_and_go_on_at_once_with_the_new() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("creds");
    let rig = rig_with_creds_file(&path);
    let bodies: Vec<_> = (0..5)
        .map(|number| rig.put(&format!("k-{number}")))
        .collect();
    rig.wait_attempts("k-0", 1);
    for (number, body) in bodies.iter().enumerate() {
        rig.assert_dirty(&format!("k-{number}"), body);
    }
    assert_eq!(rig.number("quarantined_blocks"), 0);
    assert!(rig.stub.keys(crate::rig::BUCKET).is_empty());
    replace(&path, &credentials(&StubOptions::default().secret_key));
    rig.finish();
}

#[test]
fn row_40_a_volumes_own_credentials_are_taken_from_the_settings_file() {
    let stub = Stub::start(StubOptions::default()).expect("the stub starts");
    let options = StubOptions::default();
    let lines = |secret: &str| {
        format!(
            "ttl = \"600s\"\n\n[volume.credentials]\naccess_key = \"{}\"\nsecret_key = \"{secret}\"\n",
            options.access_key
        )
    };
    let proxy = Setup {
        volume_lines: lines("not-the-secret"),
        ..setup(S3Server {
            key: String::new(),
            ..server(&stub.url())
        })
    }
    .start();
    let rig = Rig::of(proxy, stub);
    let body = rig.put("k");
    rig.wait_attempts("k", 1);
    rig.assert_dirty("k", &body);
    let file = rig.proxy.config_file();
    let text = std::fs::read_to_string(&file).expect("readable");
    replace(&file, &text.replace("not-the-secret", &options.secret_key));
    rig.finish();
}

/// A certificate for this machine by an authority of its own, as PEM: authority, chain, key.
fn certificate() -> (String, String, String) {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let authority = parameters.self_signed(&authority_key).expect("signed");
    let issuer = rcgen::Issuer::new(parameters, authority_key);
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    parameters.subject_alt_names = vec![rcgen::SanType::IpAddress(address)];
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = parameters.signed_by(&key, &issuer).expect("signed");
    (authority.pem(), leaf.pem(), key.serialize_pem())
}

#[test]
fn row_52_a_store_whose_certificate_is_not_trusted_gets_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        replace(&path, text);
        path
    };
    let (authority, chain, key) = certificate();
    let (stranger, _, _) = certificate();
    let trusted = write("trusted.pem", &stranger);
    let stub = Stub::start(StubOptions {
        tls: Some((write("chain.pem", &chain), write("key.pem", &key))),
        ..StubOptions::default()
    })
    .expect("the stub starts");
    let proxy = Setup {
        volume_lines: format!("ttl = \"600s\"\nca_file = \"{}\"\n", trusted.display()),
        ..setup(server(&stub.url()))
    }
    .start();
    assert!(matches!(proxy.setup.store, Some(StoreSpec::S3 { .. })));
    let rig = Rig::of(proxy, stub);
    let body = rig.put("k");
    rig.wait_attempts("k", 2);
    rig.assert_dirty("k", &body);
    let target = format!("/{VOLUME}/not-cached");
    let answer = rig.proxy.request("GET", &target, &[], b"");
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(rig.stub.stats().requests_total, 0, "it was spoken to");
    assert_eq!(rig.number("quarantined_blocks"), 0);
    // The authority is put right on disk; nobody restarts anything.
    write("trusted.pem", &authority);
    rig.finish();
    assert!(
        rig.stub
            .object(crate::rig::BUCKET, &stored_key("k"))
            .is_some()
    );
}
