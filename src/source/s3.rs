//! Archives in S3, or in what speaks like it: addresses, credentials, signatures (version 4).

use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use ring::hmac;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::Agent;

use super::{Failure, Outcome, hosts};
use crate::config::model::{S3, Source};

/// Where a machine of Amazon's asks what it may do.
const METADATA: &str = "http://169.254.169.254";
/// How long that may take: it is next door, or not there at all.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// What requests are signed with.
#[derive(Clone)]
pub struct Keys {
    access: String,
    secret: String,
    token: Option<String>,
}

/// The address of an object: at Amazon's, or below an endpoint of one's own.
pub fn url(bucket: &str, key: &str, s3: &S3) -> String {
    let key = encoded(key, true);
    match &s3.endpoint {
        Some(endpoint) => format!("{}/{bucket}/{key}", endpoint.trim_end_matches('/')),
        // A bucket with a dot has no certificate of its own.
        None if bucket.contains('.') => {
            format!("https://s3.{}.amazonaws.com/{bucket}/{key}", s3.region)
        }
        None => format!("https://{bucket}.s3.{}.amazonaws.com/{key}", s3.region),
    }
}

/// The keys of the configuration, of a file, or of the machine; none for a public bucket.
pub fn keys(source: &Source) -> Outcome<Option<Keys>> {
    let s3 = &source.s3;
    if let (Some(access), Some(secret)) = (&s3.access_key, &s3.secret_key) {
        return Ok(Some(Keys {
            access: access.clone(),
            secret: secret.clone(),
            token: None,
        }));
    }
    if let Some(path) = &s3.credentials {
        return from_file(path).map(Some);
    }
    let home = std::env::var("HOME").unwrap_or_default();
    for name in [".amazon/account-key", ".aws/credentials"] {
        let path = Path::new(&home).join(name);
        if path.exists() {
            return from_file(&path).map(Some);
        }
    }
    Ok(from_machine())
}

/// `accessKey=…` and `secretKey=…`, or as Amazon's own tools write them.
fn from_file(path: &Path) -> Outcome<Keys> {
    let text = fs::read_to_string(path);
    let text = text.map_err(Failure::io(format!("read {}", path.display())))?;
    let value = |names: &[&str]| {
        let mut pairs = text.lines().filter_map(|l| l.split_once('='));
        let found = pairs.find(|(name, _)| names.contains(&name.trim()));
        found
            .map(|(_, value)| value.trim().to_owned())
            .filter(|v| !v.is_empty())
    };
    let access = value(&["accessKey", "aws_access_key_id"]);
    let secret = value(&["secretKey", "aws_secret_access_key"]);
    let token = value(&["aws_session_token"]);
    match (access, secret) {
        (Some(access), Some(secret)) => Ok(Keys {
            access,
            secret,
            token,
        }),
        _ => Err(Failure::new(format!(
            "{} has no accessKey and secretKey",
            path.display()
        ))),
    }
}

/// The role of the machine, if it is one that has roles (IMDSv2).
fn from_machine() -> Option<Keys> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Role {
        access_key_id: String,
        secret_access_key: String,
        token: String,
    }
    let base = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT");
    let base = base.unwrap_or_else(|_| METADATA.to_owned());
    let base = format!("{}/latest", base.trim_end_matches('/'));
    let config = Agent::config_builder()
        .timeout_global(Some(METADATA_TIMEOUT))
        .max_redirects(0)
        .proxy(None);
    let agent = hosts::agent(config.build());
    let session = agent
        .put(format!("{base}/api/token"))
        .header("X-aws-ec2-metadata-token-ttl-seconds", "300")
        .send_empty();
    let session = session.ok()?.into_body().read_to_string().ok()?;
    let get = |path: &str| {
        let request = agent.get(format!("{base}/meta-data/iam/security-credentials/{path}"));
        let answer = request.header("X-aws-ec2-metadata-token", &session).call();
        answer.ok()?.into_body().read_to_string().ok()
    };
    let name = get("")?;
    let role: Role = serde_json::from_str(&get(name.lines().next()?.trim())?).ok()?;
    Some(Keys {
        access: role.access_key_id,
        secret: role.secret_access_key,
        token: Some(role.token),
    })
}

impl Keys {
    /// The headers that a GET of this address needs at this moment.
    pub fn headers(&self, url: &str, region: &str) -> Vec<(&'static str, String)> {
        self.headers_at(url, region, Timestamp::now())
    }

    fn headers_at(&self, url: &str, region: &str, now: Timestamp) -> Vec<(&'static str, String)> {
        let (_, rest) = url.split_once("://").unwrap_or(("", url));
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let day = &time[..8];
        let payload = "UNSIGNED-PAYLOAD";
        let mut headers = vec![
            ("host", host.to_owned()),
            ("x-amz-content-sha256", payload.to_owned()),
            ("x-amz-date", time.clone()),
        ];
        if let Some(token) = &self.token {
            headers.push(("x-amz-security-token", token.clone()));
        }
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = headers.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
        let request = format!("GET\n/{path}\n\n{lines}\n{names}\n{payload}");
        let scope = format!("{day}/{region}/s3/aws4_request");
        let digest = hex(&Sha256::digest(request.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}");
        let mut key = format!("AWS4{}", self.secret).into_bytes();
        for part in [day, region, "s3", "aws4_request"] {
            key = signed(&key, part);
        }
        let signature = hex(&signed(&key, &text));
        let login = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.access
        );
        // The client says `host` by itself.
        headers.remove(0);
        headers.push(("authorization", login));
        headers
    }
}

fn signed(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// As the signature wants addresses: everything but letters, digits and `-._~` as `%XX`.
fn encoded(text: &str, keep_slash: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            b'/' if keep_slash => encoded.push('/'),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_headers_are_as_the_service_wants_them() {
        let s3 = |endpoint: Option<&str>| S3 {
            endpoint: endpoint.map(str::to_owned),
            region: "eu-west-1".into(),
            ..S3::default()
        };
        assert_eq!(
            url("bucket", "a b/ü.zip", &s3(None)),
            "https://bucket.s3.eu-west-1.amazonaws.com/a%20b/%C3%BC.zip"
        );
        assert_eq!(
            url("b.c", "x.zip", &s3(None)),
            "https://s3.eu-west-1.amazonaws.com/b.c/x.zip"
        );
        assert_eq!(
            url("bucket", "x.zip", &s3(Some("http://127.0.0.1:9000/"))),
            "http://127.0.0.1:9000/bucket/x.zip"
        );
        let keys = Keys {
            access: "AKID".into(),
            secret: "secret".into(),
            token: Some("token".into()),
        };
        let now: Timestamp = "2026-11-21T08:00:00Z".parse().unwrap();
        let headers = keys.headers_at("http://host:9000/bucket/x.zip", "eu-west-1", now);
        let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "x-amz-content-sha256",
                "x-amz-date",
                "x-amz-security-token",
                "authorization"
            ]
        );
        assert!(headers[3].1.starts_with(
            "AWS4-HMAC-SHA256 Credential=AKID/20261121/eu-west-1/s3/aws4_request, \
             SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token, Signature="
        ));
    }
}
