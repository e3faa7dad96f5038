//! Datagrams between keeper and daemon, over a SOCK_SEQPACKET pair. Descriptors travel beside
//! them. Bytes and values only, no I/O.
//!
//! A datagram is one byte of kind and fixed fields, little endian; texts fill the rest.

/// The longest datagram, in bytes.
pub const MAX: usize = 1024;

/// The most descriptors that travel with one datagram.
pub const MAX_FDS: usize = crate::sys::child::Datagram::MOST_FDS;

/// The most runs that are forgotten with one datagram.
pub const MOST_FORGOTTEN: usize = 16;

/// What the daemon, or a run's process before it executes, tells the keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToKeeper {
    /// The third descriptor of a run is not needed any more.
    Unpark {
        /// Which run.
        run: u64,
    },
    /// These runs are over and on record.
    Forget {
        /// Which runs, [`MOST_FORGOTTEN`] at most.
        runs: Vec<u64>,
    },
    /// The process that sends this becomes the run. Its descriptors are to be held: the read ends
    /// of its stdout and stderr, and the write end of its stdin if there is a third.
    Started {
        /// Which run.
        run: u64,
        /// Its pid.
        pid: u32,
    },
    /// Hold the configuration that is in force.
    ParkConfig,
    /// Hold the listening socket.
    ParkListener,
    /// The daemon serves.
    Ready,
    /// It reads its configuration.
    Reloading,
    /// It stops.
    Stopping,
    /// What it does, in words.
    Status(String),
    /// It is well.
    Alive,
    /// It ends because it was told to: do not start it again.
    Quit,
}

/// What the keeper tells the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToDaemon {
    /// First of all: why this daemon was started.
    Hello(Reason),
    /// The configuration in force (one descriptor).
    Config,
    /// The listening socket (one descriptor).
    Listener,
    /// A run that a former daemon left behind, with its descriptors.
    Run {
        /// Which run.
        run: u64,
        /// Its process; 0 where none was ever made.
        pid: u32,
        /// How it ended, as `waitid` codes it: status, or minus the signal. None: it lives.
        exit: Option<i32>,
    },
    /// That was all.
    End,
    /// A run whose process was the keeper's child has ended.
    Exited {
        /// Which run.
        run: u64,
        /// Status, or minus the signal.
        exit: i32,
    },
    /// Stop.
    Stop,
    /// Read the configuration again.
    Reload,
    /// End at once and leave the runs alone: another daemon takes over.
    Retire,
}

/// Why a daemon was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There was none before.
    First,
    /// The one before died.
    Crashed,
    /// The program on disk is a new one.
    Upgraded,
}

/// Where the pid stands in a [`ToKeeper::Started`] datagram, 4 bytes.
pub const STARTED_PID_AT: usize = 9;

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// One number at least, and nothing else.
fn numbers(bytes: &[u8]) -> Option<Vec<u64>> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(8) {
        return None;
    }
    (0..bytes.len())
        .step_by(8)
        .map(|at| number(bytes, at))
        .collect()
}

fn small(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn with_run(kind: u8, run: u64) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&run.to_le_bytes());
    bytes
}

impl ToKeeper {
    /// The datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Unpark { run } => with_run(2, *run),
            Self::Forget { runs } => {
                let runs = runs.iter().take(MOST_FORGOTTEN);
                let runs = runs.flat_map(|run| run.to_le_bytes());
                [3].into_iter().chain(runs).collect()
            }
            Self::Started { run, pid } => {
                let mut bytes = with_run(4, *run);
                bytes.extend_from_slice(&pid.to_le_bytes());
                bytes
            }
            Self::ParkConfig => vec![5],
            Self::ParkListener => vec![6],
            Self::Ready => vec![7],
            Self::Reloading => vec![8],
            Self::Stopping => vec![9],
            Self::Status(text) => {
                let end = (0..=text.len().min(MAX - 1))
                    .rev()
                    .find(|i| text.is_char_boundary(*i))
                    .unwrap_or(0);
                [&[10], &text.as_bytes()[..end]].concat()
            }
            Self::Alive => vec![11],
            Self::Quit => vec![12],
        }
    }

    /// Reads a datagram; none if it is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let run = || {
            if rest.len() == 8 {
                number(rest, 0)
            } else {
                None
            }
        };
        let bare = |message| rest.is_empty().then_some(message);
        match kind {
            2 => Some(Self::Unpark { run: run()? }),
            3 => Some(Self::Forget {
                runs: numbers(rest)?,
            }),
            4 if rest.len() == 12 => Some(Self::Started {
                run: number(rest, 0)?,
                pid: small(rest, 8)?,
            }),
            5 => bare(Self::ParkConfig),
            6 => bare(Self::ParkListener),
            7 => bare(Self::Ready),
            8 => bare(Self::Reloading),
            9 => bare(Self::Stopping),
            10 => Some(Self::Status(std::str::from_utf8(rest).ok()?.to_owned())),
            11 => bare(Self::Alive),
            12 => bare(Self::Quit),
            _ => None,
        }
    }
}

impl ToDaemon {
    /// The datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(reason) => vec![1, *reason as u8],
            Self::Config => vec![2],
            Self::Listener => vec![3],
            Self::Run { run, pid, exit } => {
                let mut bytes = with_run(4, *run);
                bytes.extend_from_slice(&pid.to_le_bytes());
                bytes.push(u8::from(exit.is_some()));
                bytes.extend_from_slice(&exit.unwrap_or(0).to_le_bytes());
                bytes
            }
            Self::End => vec![5],
            Self::Exited { run, exit } => {
                let mut bytes = with_run(6, *run);
                bytes.extend_from_slice(&exit.to_le_bytes());
                bytes
            }
            Self::Stop => vec![7],
            Self::Reload => vec![8],
            Self::Retire => vec![9],
        }
    }

    /// Reads a datagram; none if it is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let bare = |message| rest.is_empty().then_some(message);
        match kind {
            1 => match rest {
                [0] => Some(Self::Hello(Reason::First)),
                [1] => Some(Self::Hello(Reason::Crashed)),
                [2] => Some(Self::Hello(Reason::Upgraded)),
                _ => None,
            },
            2 => bare(Self::Config),
            3 => bare(Self::Listener),
            4 if rest.len() == 17 => {
                let exit = small(rest, 13)? as i32;
                let exit = match rest[12] {
                    0 => None,
                    1 => Some(exit),
                    _ => return None,
                };
                Some(Self::Run {
                    run: number(rest, 0)?,
                    pid: small(rest, 8)?,
                    exit,
                })
            }
            5 => bare(Self::End),
            6 if rest.len() == 12 => Some(Self::Exited {
                run: number(rest, 0)?,
                exit: small(rest, 8)? as i32,
            }),
            7 => bare(Self::Stop),
            8 => bare(Self::Reload),
            9 => bare(Self::Retire),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_and_every_truncation_is_refused() {
        let run = 0x0102_0304_0506_0708;
        let to_keeper = [
            ToKeeper::Unpark { run },
            ToKeeper::Forget { runs: vec![run] },
            ToKeeper::Started { run, pid: 77 },
            ToKeeper::ParkConfig,
            ToKeeper::ParkListener,
            ToKeeper::Ready,
            ToKeeper::Reloading,
            ToKeeper::Stopping,
            ToKeeper::Alive,
            ToKeeper::Quit,
        ];
        for message in to_keeper {
            let bytes = message.encode();
            assert_eq!(ToKeeper::decode(&bytes), Some(message));
            for cut in 0..bytes.len() {
                assert_eq!(ToKeeper::decode(&bytes[..cut]), None);
            }
            assert_eq!(ToKeeper::decode(&[&bytes[..], &[0]].concat()), None);
        }
        let status = ToKeeper::Status("é".repeat(2000));
        assert!(status.encode().len() <= MAX && ToKeeper::decode(&status.encode()).is_some());
        let to_daemon = [
            ToDaemon::Hello(Reason::First),
            ToDaemon::Hello(Reason::Crashed),
            ToDaemon::Hello(Reason::Upgraded),
            ToDaemon::Config,
            ToDaemon::Listener,
            ToDaemon::Run {
                run,
                pid: 7,
                exit: None,
            },
            ToDaemon::Run {
                run,
                pid: 7,
                exit: Some(-9),
            },
            ToDaemon::End,
            ToDaemon::Exited { run, exit: 3 },
            ToDaemon::Stop,
            ToDaemon::Reload,
            ToDaemon::Retire,
        ];
        for message in to_daemon {
            let bytes = message.encode();
            assert_eq!(ToDaemon::decode(&bytes), Some(message));
            for cut in 0..bytes.len() {
                assert_eq!(ToDaemon::decode(&bytes[..cut]), None);
            }
        }
    }

    #[test]
    fn many_runs_are_forgotten_with_one_datagram() {
        let runs: Vec<u64> = (0..MOST_FORGOTTEN as u64).map(|n| n << 40).collect();
        let bytes = ToKeeper::Forget { runs: runs.clone() }.encode();
        assert!(bytes.len() <= MAX);
        assert_eq!(ToKeeper::decode(&bytes), Some(ToKeeper::Forget { runs }));
    }

    #[test]
    fn the_pid_of_a_start_stands_where_it_is_patched_in() {
        let mut bytes = ToKeeper::Started { run: 5, pid: 0 }.encode();
        bytes[STARTED_PID_AT..STARTED_PID_AT + 4].copy_from_slice(&4711_u32.to_le_bytes());
        assert_eq!(
            ToKeeper::decode(&bytes),
            Some(ToKeeper::Started { run: 5, pid: 4711 })
        );
    }
}
