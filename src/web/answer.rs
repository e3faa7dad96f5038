//! What is answered: bodies that are there or come, and errors as problem documents (RFC 9457).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

use super::upstream::Fault;
use crate::protocol::message::ErrorCode;

/// The body of an answer.
pub enum Body {
    /// It is here.
    Whole(Option<Bytes>),
    /// It comes piece by piece, until nobody sends any more.
    Coming(mpsc::Receiver<Bytes>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Coming(from) => from
                .poll_recv(cx)
                .map(|bytes| bytes.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::Coming(_) => SizeHint::default(),
        }
    }
}

/// An answer.
pub type Answer = Response<Body>;

/// An answer with a body of this type.
pub fn answer(status: StatusCode, kind: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Something as JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Only maps with strange keys cannot be written, and there are none.
    let text = serde_json::to_vec(value).unwrap_or_default();
    answer(status, "application/json", Body::Whole(Some(text.into())))
}

/// Text as it is.
pub fn text(status: StatusCode, kind: &'static str, text: String) -> Answer {
    answer(status, kind, Body::Whole(Some(text.into())))
}

/// Something that went wrong.
#[derive(Debug)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// A stable word for programs.
    pub code: String,
    /// What, and what to do next.
    pub detail: String,
}

impl Problem {
    /// One that the gateway found itself.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            detail: detail.into(),
        }
    }

    /// The document.
    pub fn answer(&self) -> Answer {
        #[derive(Serialize)]
        struct Document<'a> {
            r#type: &'static str,
            title: &'static str,
            status: u16,
            detail: &'a str,
            code: &'a str,
        }
        let document = Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: &self.code,
        };
        let mut answer = json(self.status, &document);
        let headers = answer.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if matches!(self.status.as_u16(), 429 | 503) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let how = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, how);
        }
        answer
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let status = match fault.code {
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::Refused => StatusCode::NOT_FOUND,
            ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorCode::BadInput => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::Busy => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Frozen | ErrorCode::Over => StatusCode::CONFLICT,
            ErrorCode::NotRecorded | ErrorCode::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::BadConfig | ErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let code = serde_json::to_value(fault.code).ok();
        let code = code.and_then(|c| c.as_str().map(str::to_owned));
        Self {
            status,
            code: code.unwrap_or_default(),
            detail: fault.message,
        }
    }
}
