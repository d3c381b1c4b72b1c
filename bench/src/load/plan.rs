//! The command line as it is meant: owns every check, so that a run that starts does not fail over its arguments.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use crate::content::parse_size;
use crate::load::LoadError;
use crate::load::arguments::{Get, Put};
use crate::load::keys::{Keys, Order};
use crate::load::tls;

/// Most connections: a generator that needs more is a generator on several machines.
const CONNECTIONS_MAX: usize = 20_000;

/// Longest run of a `put --count`, which ends by itself: a day.
const COUNT_SECONDS_MAX: u64 = 24 * 3600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Put,
}

impl Method {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// Which bodies are compared with the bytes that they should be. Lengths always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    Length,
    Sample,
    All,
}

/// When open-loop requests are due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Arrivals {
    /// Requests per second, over all threads.
    pub(super) rate: f64,
    pub(super) poisson: bool,
}

/// One URL that keys are appended to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) text: String,
    pub(super) address: SocketAddr,
    /// Value of the `Host` header.
    pub(super) host: String,
    /// Path that the key is appended to; begins and ends with a slash, or as typed.
    pub(super) path: String,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// A run, checked.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) method: Method,
    pub(super) targets: Vec<Target>,
    pub(super) keys: Keys,
    pub(super) size: u64,
    pub(super) range: Option<u64>,
    pub(super) connections: usize,
    pub(super) threads: usize,
    pub(super) seconds: Duration,
    pub(super) warmup: Duration,
    /// Stop after this many requests, each successful one a different key.
    pub(super) count: Option<u64>,
    /// Header lines, each with its line end.
    pub(super) header_lines: String,
    pub(super) server_pids: Vec<u32>,
    pub(super) device: Option<String>,
    pub(super) cpus: Vec<usize>,
    pub(super) arrivals: Option<Arrivals>,
    pub(super) verify: Verify,
    /// One answer in this many is broken off by closing the connection.
    pub(super) break_off: Option<u64>,
}

impl Plan {
    pub(super) fn for_get(get: &Get) -> Result<Self, LoadError> {
        let size = parse_size(&get.size).map_err(usage)?;
        let range = get
            .range
            .as_deref()
            .map(parse_size)
            .transpose()
            .map_err(usage)?;
        if range.is_some_and(|range| range == 0 || range > size) {
            return Err(usage("--range must be between 1 and --size".into()));
        }
        let verify = match get.verify.as_str() {
            "length" => Verify::Length,
            "sample" => Verify::Sample,
            "all" => Verify::All,
            other => {
                return Err(usage(format!(
                    "--verify {other:?}: expected length, sample or all"
                )));
            }
        };
        let order = get.order.parse::<Order>().map_err(usage)?;
        Self {
            method: Method::Get,
            targets: targets(
                &get.target,
                get.ca.as_deref(),
                get.insecure,
                get.tls13_aes128,
            )?,
            keys: Keys::new(&get.key_pattern, &get.size, get.keys, order).map_err(usage)?,
            size,
            range,
            connections: get.connections,
            threads: get.threads,
            seconds: duration("--seconds", get.seconds)?,
            warmup: duration("--warmup", get.warmup)?,
            count: None,
            header_lines: header_lines(&get.header)?,
            server_pids: numbers("--server-pid", get.server_pid.as_deref())?,
            device: get.device.clone(),
            cpus: numbers("--pin", get.pin.as_deref())?,
            arrivals: arrivals(get.rate, &get.arrivals)?,
            verify,
            break_off: get.break_off,
        }
        .checked()
    }

    pub(super) fn for_put(put: &Put) -> Result<Self, LoadError> {
        let timed = put.count.is_none();
        let seconds = duration("--seconds", put.seconds)?;
        Self {
            method: Method::Put,
            targets: targets(
                &put.target,
                put.ca.as_deref(),
                put.insecure,
                put.tls13_aes128,
            )?,
            keys: Keys::new(
                &put.key_pattern,
                &put.size,
                put.count.unwrap_or(put.keys),
                Order::Sequential,
            )
            .map_err(usage)?,
            size: parse_size(&put.size).map_err(usage)?,
            range: None,
            connections: put.connections,
            threads: put.threads,
            seconds: if timed {
                seconds
            } else {
                Duration::from_secs(COUNT_SECONDS_MAX)
            },
            warmup: if timed {
                duration("--warmup", put.warmup)?
            } else {
                Duration::ZERO
            },
            count: put.count,
            header_lines: header_lines(&put.header)?,
            server_pids: numbers("--server-pid", put.server_pid.as_deref())?,
            device: put.device.clone(),
            cpus: numbers("--pin", put.pin.as_deref())?,
            arrivals: arrivals(put.rate, &put.arrivals)?,
            verify: Verify::Length,
            break_off: None,
        }
        .checked()
    }

    fn checked(self) -> Result<Self, LoadError> {
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return Err(usage(format!(
                "--connections must be between 1 and {CONNECTIONS_MAX}"
            )));
        }
        if self.threads == 0 || self.threads > self.connections {
            return Err(usage(
                "--threads must be between 1 and --connections".into(),
            ));
        }
        if self.break_off == Some(0) {
            return Err(usage("--break-off must be above 0".into()));
        }
        if self.seconds.is_zero() {
            return Err(usage("--seconds must be above 0".into()));
        }
        Ok(self)
    }

    /// Body bytes of one successful request.
    pub(super) fn body_bytes(&self) -> u64 {
        self.range.unwrap_or(self.size)
    }
}

fn usage(message: String) -> LoadError {
    LoadError::Usage(message)
}

fn duration(flag: &str, seconds: f64) -> Result<Duration, LoadError> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| usage(format!("{flag} {seconds}: expected seconds, 0 or more")))
}

fn numbers<T: std::str::FromStr>(flag: &str, list: Option<&str>) -> Result<Vec<T>, LoadError> {
    let parse = |text: &str| {
        text.trim()
            .parse()
            .map_err(|_| usage(format!("{flag} {text:?}: expected a number")))
    };
    list.map_or(Ok(Vec::new()), |list| list.split(',').map(parse).collect())
}

fn arrivals(rate: Option<f64>, spacing: &str) -> Result<Option<Arrivals>, LoadError> {
    let poisson = match spacing {
        "poisson" => true,
        "fixed" => false,
        other => {
            return Err(usage(format!(
                "--arrivals {other:?}: expected poisson or fixed"
            )));
        }
    };
    match rate {
        None => Ok(None),
        Some(rate) if rate > 0.0 && rate.is_finite() => Ok(Some(Arrivals { rate, poisson })),
        Some(rate) => Err(usage(format!(
            "--rate {rate}: expected requests per second above 0"
        ))),
    }
}

fn header_lines(headers: &[String]) -> Result<String, LoadError> {
    let mut lines = String::new();
    for header in headers {
        let well_formed = header
            .split_once(':')
            .is_some_and(|(name, _)| !name.is_empty() && !name.contains(' '));
        if !well_formed || header.contains(['\r', '\n']) {
            return Err(usage(format!(
                "--header {header:?}: expected 'Name: value'"
            )));
        }
        lines.push_str(header);
        lines.push_str("\r\n");
    }
    Ok(lines)
}

fn targets(
    list: &str,
    ca: Option<&std::path::Path>,
    insecure: bool,
    tls13_aes128: bool,
) -> Result<Vec<Target>, LoadError> {
    let mut config = None;
    list.split(',')
        .map(|text| {
            let wrong = |why: &str| usage(format!("--target {text:?}: {why}"));
            let (scheme, rest) = text
                .split_once("://")
                .ok_or_else(|| wrong("expected http:// or https://"))?;
            let port = match scheme {
                "http" => 80,
                "https" => 443,
                _ => return Err(wrong("expected http:// or https://")),
            };
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let has_port = host
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let resolvable = if has_port {
                host.to_owned()
            } else {
                format!("{host}:{port}")
            };
            let address = resolvable
                .to_socket_addrs()
                .map_err(|error| wrong(&error.to_string()))?
                .next();
            let tls = if scheme == "https" {
                if config.is_none() {
                    config = Some(tls::client_config(ca, insecure, tls13_aes128).map_err(usage)?);
                }
                let bare = if has_port {
                    host.rsplit_once(':').map_or(host, |(name, _)| name)
                } else {
                    host
                };
                let bare = bare
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned();
                let name = ServerName::try_from(bare)
                    .map_err(|_| wrong("the host is neither a name nor an address"))?;
                config.clone().map(|config| (config, name))
            } else {
                None
            };
            Ok(Target {
                text: text.to_owned(),
                address: address.ok_or_else(|| wrong("the host has no address"))?,
                host: host.to_owned(),
                path: if path.is_empty() {
                    "/".into()
                } else {
                    path.to_owned()
                },
                tls,
            })
        })
        .collect()
}
