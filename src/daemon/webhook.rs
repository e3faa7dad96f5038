//! Webhooks: a service that knows a program's secret asks for an action of it, as the daemon
//! itself does at its times.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use ring::hmac;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{info, warn};

use super::front::Front;
use crate::ids::{ActionName, ProgramName};
use crate::protocol::frame::{self, Kind};
use crate::protocol::gateway::{Hook, LARGEST_HOOK};
use crate::protocol::message::{ErrorCode, Reply};
use crate::server::Notice;

/// How long the request may take to be on record.
const PATIENCE: Duration = Duration::from_secs(10);
/// A secret that is shorter than that is none, in bytes.
const SHORTEST: usize = 8;

/// Answers one on the socket that came with it.
pub async fn answer(front: Front, hook: Hook, body: OwnedFd, mut to: UnixStream) {
    let reply = decide(&front, hook, body)
        .await
        .unwrap_or_else(|refused| refused);
    let json = serde_json::to_vec(&reply).unwrap_or_default();
    let _ = to.write_all(&frame::encode(Kind::Control, &json)).await;
}

fn error(code: ErrorCode, message: impl Into<String>) -> Reply {
    Reply::Error {
        code,
        message: message.into(),
    }
}

async fn decide(front: &Front, hook: Hook, body: OwnedFd) -> Result<Reply, Reply> {
    // Who does not know the secret does not learn what there is.
    let unknown = || {
        error(
            ErrorCode::Refused,
            "no such webhook, or its signature is not right",
        )
    };
    let program = ProgramName::new(&hook.program).map_err(|_| unknown())?;
    let action = ActionName::new(&hook.action).map_err(|_| unknown())?;
    let now = front.in_force.borrow().clone();
    let spec = now.config.programs.get(&program);
    let secret = spec.and_then(|spec| spec.hooks.get(&action)).cloned();
    let secret = secret.ok_or_else(unknown)?;
    let event = hook.event.clone().unwrap_or_default();
    let checked = tokio::task::spawn_blocking(move || is_right(&secret, &hook, body)).await;
    match checked {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            warn!("a webhook for {program} {action} has no right signature");
            return Err(unknown());
        }
        Ok(Err(e)) => {
            warn!("the secret of hook-{action} of {program} cannot be used: {e}");
            return Err(unknown());
        }
        Err(_) => {
            return Err(error(
                ErrorCode::Failed,
                "the webhook could not be looked at",
            ));
        }
    }
    if event == "ping" {
        let message = Some(format!("{program} {action} can be asked for"));
        return Ok(Reply::Done {
            message,
            output: None,
            status: 0,
        });
    }
    if let Some(frozen) = front.frozen(&program) {
        let message = format!("{program} is {}; nothing was run", frozen.said());
        return Err(error(ErrorCode::Frozen, message));
    }
    info!("a webhook asks for {action} of {program}");
    let reason = match event.as_str() {
        "" => "a webhook".to_owned(),
        event => format!("a webhook: {event}"),
    };
    let told = front.by_itself(&program, &action, &reason);
    let mut told = told.ok_or_else(|| {
        let message = format!("{program} {action} cannot be done by itself");
        error(ErrorCode::BadInput, message)
    })?;
    let first = async {
        while let Some(notice) = told.recv().await {
            match notice {
                Notice::Reply(reply) | Notice::Final(reply) => match *reply {
                    Reply::Accepted { id, .. } => return Reply::Accepted { id, behind: None },
                    reply @ (Reply::Error { .. } | Reply::Done { .. }) => return reply,
                    _ => {}
                },
                Notice::Started { request, .. } => {
                    return Reply::Accepted {
                        id: request.0,
                        behind: None,
                    };
                }
                Notice::Feed(_) => {}
            }
        }
        error(ErrorCode::Failed, "the request was lost")
    };
    let answered = timeout(PATIENCE, first).await;
    Ok(answered.unwrap_or_else(|_| error(ErrorCode::Busy, "the request is not on record yet")))
}

/// Whether whoever sends this body knows the secret in that file.
fn is_right(secret: &Path, hook: &Hook, body: OwnedFd) -> io::Result<bool> {
    let secret = fs::read_to_string(secret)?;
    let secret = secret.trim();
    if secret.len() < SHORTEST {
        let message = format!("it has less than {SHORTEST} characters");
        return Err(io::Error::other(message));
    }
    if let Some(shown) = &hook.token {
        // By their digests: how long that takes says nothing of the secret.
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"token");
        let right = hmac::sign(&key, secret.as_bytes());
        return Ok(hmac::verify(&key, shown.as_bytes(), right.as_ref()).is_ok());
    }
    let Some(signature) = hook.signature.as_deref().and_then(bytes) else {
        return Ok(false);
    };
    let mut file = File::from(body);
    file.seek(SeekFrom::Start(0))?;
    let mut content = Vec::new();
    file.take(LARGEST_HOOK as u64 + 1)
        .read_to_end(&mut content)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    Ok(hmac::verify(&key, &content, &signature).is_ok())
}

/// The bytes of a hexadecimal number.
fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    match digits.len() % 2 {
        0 => digits.chunks(2).map(byte).collect(),
        _ => None,
    }
}
