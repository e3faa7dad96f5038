//! The first line of a connection, and the answers of the plain protocol.

use super::MAX_REQUEST;

/// The line that begins a framed connection.
pub const FRAMED: &[u8] = b"DEPLOYER 1\n";

/// What a connection's first line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstLine {
    /// `RUN NAME`; the name is not checked yet.
    Run(String),
    /// `DEPLOYER 1`: frames follow.
    Framed,
}

/// Why a first line was refused. The text follows `ERROR ` on plain connections.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// No line end within [`MAX_REQUEST`] bytes.
    #[error("the first line is longer than {MAX_REQUEST} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("the first line is not UTF-8")]
    NotUtf8,
    /// A version of the framed protocol that is not spoken here.
    #[error("only version 1 of the framed protocol is spoken here: send DEPLOYER 1")]
    Version,
    /// Anything else.
    #[error("expected RUN and the name of a program")]
    Unknown,
}

/// Looks for a whole first line at the start of `bytes`.
///
/// `Ok(None)`: more bytes are needed. `Ok(Some((line, length)))`: `length` bytes are used up.
///
/// # Errors
/// [`LineError`]; the connection is of no further use.
pub fn first_line(bytes: &[u8]) -> Result<Option<(FirstLine, usize)>, LineError> {
    let Some(end) = bytes.iter().take(MAX_REQUEST).position(|b| *b == b'\n') else {
        return if bytes.len() >= MAX_REQUEST {
            Err(LineError::TooLong)
        } else {
            Ok(None)
        };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let line = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?;
    let parsed = match line.split_once(' ') {
        Some(("RUN", name)) => FirstLine::Run(name.to_owned()),
        Some(("DEPLOYER", "1")) => FirstLine::Framed,
        Some(("DEPLOYER", _)) => return Err(LineError::Version),
        _ => return Err(LineError::Unknown),
    };
    Ok(Some((parsed, end + 1)))
}

/// The answer of a plain connection to its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It runs.
    Ok,
    /// It waits for its turn.
    OkWait,
    /// It was refused, or could not be started.
    Error(&'a str),
}

impl Answer<'_> {
    /// The line, with its end. Control characters of an error become spaces: an answer is one line.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ok => b"OK\n".to_vec(),
            Self::OkWait => b"OK WAIT\n".to_vec(),
            Self::Error(message) => {
                let clean: String = message
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .collect();
                format!("ERROR {clean}\n").into_bytes()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_when_it_is_whole_and_not_before() {
        assert_eq!(first_line(b"RUN samp"), Ok(None));
        assert_eq!(
            first_line(b"RUN sample.sh\nrest"),
            Ok(Some((FirstLine::Run("sample.sh".into()), 14)))
        );
        assert_eq!(
            first_line(b"RUN a\r\n"),
            Ok(Some((FirstLine::Run("a".into()), 7)))
        );
        assert_eq!(
            first_line(FRAMED),
            Ok(Some((FirstLine::Framed, FRAMED.len())))
        );
    }

    #[test]
    fn other_lines_are_refused() {
        assert_eq!(first_line(b"\n"), Err(LineError::Unknown));
        assert_eq!(first_line(b"run a\n"), Err(LineError::Unknown));
        assert_eq!(first_line(b"GET / HTTP/1.1\r\n"), Err(LineError::Unknown));
        assert_eq!(first_line(b"DEPLOYER 2\n"), Err(LineError::Version));
        assert_eq!(first_line(b"RUN \xff\n"), Err(LineError::NotUtf8));
        assert_eq!(
            first_line(&vec![b'x'; MAX_REQUEST]),
            Err(LineError::TooLong)
        );
        assert_eq!(first_line(&vec![b'x'; MAX_REQUEST - 1]), Ok(None));
    }

    #[test]
    fn an_error_is_one_line_whatever_it_says() {
        assert_eq!(Answer::Error("a\nb\x1b[c").encode(), b"ERROR a b [c\n");
    }
}
