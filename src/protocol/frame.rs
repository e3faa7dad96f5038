//! Frames: one byte of kind, a 32-bit big-endian length, the payload.

use super::MAX_REQUEST;

/// Bytes before the payload.
pub const HEADER: usize = 5;

/// The largest data payload that either side sends, in bytes.
pub const MAX_DATA: usize = 64 * 1024;

/// The largest control frame that a client takes, in bytes: a configuration's errors come in one.
pub const MAX_REPLY: usize = 8 * 1024 * 1024;

/// What a frame carries. None of the bytes is a letter, so a frame is never taken for the
/// `ERROR …` line with which a connection may be turned away before its first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A JSON [`message`](super::message).
    Control = 1,
    /// Bytes for the run's standard input; an empty payload is its end.
    Stdin = 2,
    /// Bytes of the run's standard output.
    Stdout = 3,
    /// Bytes of the run's standard error.
    Stderr = 4,
}

/// Why a frame was refused; the connection is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that is not known.
    #[error("frame of the unknown kind {0}")]
    Kind(u8),
    /// A length above the limit of its kind.
    #[error("frame of {0} bytes is too large")]
    TooLarge(u32),
}

/// The header of a frame.
#[must_use]
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    debug_assert!(u32::try_from(length).is_ok());
    let l = (length as u32).to_be_bytes();
    [kind as u8, l[0], l[1], l[2], l[3]]
}

/// A whole frame.
#[must_use]
pub fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&header(kind, payload.len()));
    frame.extend_from_slice(payload);
    frame
}

/// Looks for a whole frame of a client at the start of `bytes`.
///
/// `Ok(None)`: more bytes are needed. `Ok(Some((kind, length)))`: the payload is
/// `bytes[HEADER..HEADER + length]`. A frame that will be too large is refused by its header.
///
/// # Errors
/// [`FrameError`].
pub fn decode(bytes: &[u8]) -> Result<Option<(Kind, usize)>, FrameError> {
    decode_up_to(bytes, MAX_REQUEST)
}

/// The same for a frame of the daemon, whose messages may be larger.
///
/// # Errors
/// [`FrameError`].
pub fn decode_reply(bytes: &[u8]) -> Result<Option<(Kind, usize)>, FrameError> {
    decode_up_to(bytes, MAX_REPLY)
}

fn decode_up_to(bytes: &[u8], control: usize) -> Result<Option<(Kind, usize)>, FrameError> {
    let Some(&kind) = bytes.first() else {
        return Ok(None);
    };
    let (kind, limit) = match kind {
        1 => (Kind::Control, control),
        2 => (Kind::Stdin, MAX_DATA),
        3 => (Kind::Stdout, MAX_DATA),
        4 => (Kind::Stderr, MAX_DATA),
        other => return Err(FrameError::Kind(other)),
    };
    let Some(length) = bytes.get(1..HEADER) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
    if length as usize > limit {
        return Err(FrameError::TooLarge(length));
    }
    let length = length as usize;
    Ok((bytes.len() >= HEADER + length).then_some((kind, length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_that_will_be_too_large_is_refused_by_its_header() {
        assert_eq!(decode(&[1, 0, 1, 0, 1]), Err(FrameError::TooLarge(65537)));
        assert_eq!(decode(&[9]), Err(FrameError::Kind(9)));
        assert_eq!(decode(b"ERROR busy\n"), Err(FrameError::Kind(b'E')));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_at_every_split(payload in prop::collection::vec(any::<u8>(), 0..300), tail in 0..9usize) {
            let mut bytes = encode(Kind::Stdin, &payload);
            let whole = bytes.len();
            for cut in 0..whole {
                prop_assert_eq!(decode(&bytes[..cut]), Ok(None));
            }
            bytes.resize(whole + tail, 7);
            prop_assert_eq!(decode(&bytes), Ok(Some((Kind::Stdin, payload.len()))));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }
}
