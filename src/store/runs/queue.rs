//! Commands on their way to the store's thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Command;
use crate::store::StoreError;

/// Where commands wait. What is not due yet waits for what is: no channel can say that.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    due: Condvar,
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    /// Whether the thread has to look at them.
    due: bool,
    /// Nobody takes any more.
    closed: bool,
}

impl Queue {
    /// Puts a command behind all others; it is due `now`, and they with it, or with a later one.
    pub(super) fn push(&self, command: Command, now: bool) {
        let mut state = self.state();
        if state.closed {
            drop(state);
            return command.refuse(&StoreError::Closed);
        }
        state.commands.push_back(command);
        self.wake(state, now);
    }

    /// All that is there is due.
    pub(super) fn flush(&self) {
        let state = self.state();
        let something = !state.commands.is_empty();
        self.wake(state, something);
    }

    /// After the lock is let go of: who is woken wants it.
    fn wake(&self, mut state: MutexGuard<'_, State>, now: bool) {
        let wakes = now && !state.due;
        state.due |= now;
        drop(state);
        if wakes {
            self.due.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's end of the queue. When it is dropped, what is left is refused.
pub(super) struct Outlet(pub(super) Arc<Queue>);

impl Outlet {
    /// Waits until something is due, `patience` at most, and takes what is there, `most` at a
    /// time; nothing if there is nothing.
    pub(super) fn take(&self, most: usize, patience: Option<Duration>) -> Vec<Command> {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut state = self.0.state();
        while !state.due {
            let left = until.map(|at| at.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = self.0.due.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.0.due.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        let count = state.commands.len().min(most);
        let taken = state.commands.drain(..count).collect();
        state.due = !state.commands.is_empty();
        taken
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.state();
            state.closed = true;
            std::mem::take(&mut state.commands)
        };
        for command in left {
            command.refuse(&StoreError::Closed);
        }
    }
}
