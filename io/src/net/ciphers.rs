//! Which library encrypts: the faster one on this processor.
//!
//! This file owns the choice and nothing of TLS itself. Key exchange, signatures and randomness are
//! always aws-lc's; AES-GCM is nearly all of what a proxy encrypts, and its speed differs by more than
//! two between libraries, in either direction.

use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

/// The cryptography for every TLS connection that this process accepts or makes.
pub fn crypto_provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if ring_is_faster() {
        provider.cipher_suites = ring::DEFAULT_CIPHER_SUITES.to_vec();
    }
    provider
}

/// Whether ring's AES-GCM is the faster one here; aws-lc's is everywhere else.
pub(super) fn ring_is_faster() -> bool {
    has_wide_aes() && !has_wide_registers()
}

/// Whether several AES blocks and products are made by one instruction (Zen 3, Alder Lake and later).
///
/// aws-lc makes use of it with 512-bit registers only, ring with 256-bit ones only. Of 16 KiB records,
/// decrypting: without AVX-512 ring 3.7 GiB/s, aws-lc 2.1 (EPYC, a busy machine); with it, encrypting:
/// aws-lc 20.3 GB/s, ring 9.9.
fn has_wide_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("vaes")
        && std::is_x86_feature_detected!("vpclmulqdq")
        && std::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Whether aws-lc's 512-bit code runs here.
fn has_wide_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_suites_are_offered_by_either_library() {
        let names = |suites: &[rustls::SupportedCipherSuite]| {
            suites.iter().map(|s| s.suite()).collect::<Vec<_>>()
        };
        let ours = crypto_provider();
        let theirs = aws_lc_rs::default_provider();
        assert_eq!(names(&ours.cipher_suites), names(&theirs.cipher_suites));
        assert_eq!(
            names(ring::DEFAULT_CIPHER_SUITES),
            names(&theirs.cipher_suites)
        );
    }
}
