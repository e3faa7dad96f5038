//! Runs as processes: what a child gets, how it is made, how all of it is ended, where its
//! output goes. Knows nothing of requests, lanes or clients.

pub mod cgroup;
pub mod environment;
pub mod identity;
pub mod journal;
pub mod pump;
pub mod script;
pub mod spawn;
pub mod tree;
