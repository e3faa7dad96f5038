//! What the daemon and its HTTP gateway say to each other, over a socket of their own: one JSON
//! object a message, with descriptors.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the gateway finds its end of the socket.
pub const LINE_FD: i32 = 3;

/// The longest message, in bytes.
pub const LONGEST: usize = 16 * 1024;

/// The daemon's only message. The listening sockets come with it, in the order of `listeners`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the sockets are.
    pub listeners: Vec<Listener>,
    /// By which names it may be called, beside those of the machine itself.
    pub hosts: Vec<String>,
    /// The header in which a reverse proxy says who asks, in lower case.
    pub user_header: Option<String>,
    /// Which pages are served.
    pub ui: Ui,
}

/// The pages that a browser is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ui {
    /// Those that are built in.
    BuiltIn,
    /// The files of this directory.
    Directory(PathBuf),
    /// None.
    None,
}

/// A socket that the gateway accepts connections on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Listener {
    /// A UNIX socket.
    Unix,
    /// TCP.
    Tcp,
}

/// What the gateway says for each request. Two descriptors come with it: the socket of the HTTP
/// client, which the daemon asks who that is, and a stream socket on which the framed protocol is
/// spoken in that client's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// Who it is according to a reverse proxy. Counts only if that is one that is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The token that was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// It is a webhook. A third descriptor has its body, and nothing is asked on the socket: the
    /// one answer comes on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
}

/// The largest body of a webhook, in bytes.
pub const LARGEST_HOOK: usize = 8 << 20;

/// A webhook: who sends it proves that they know a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hook {
    /// The program that it is for.
    pub program: String,
    /// What is asked for.
    pub action: String,
    /// HMAC-SHA256 of the body, in hexadecimal (GitHub, Gitea, Forgejo).
    pub signature: Option<String>,
    /// The secret itself (GitLab).
    pub token: Option<String>,
    /// What has happened there.
    pub event: Option<String>,
}
