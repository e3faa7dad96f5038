//! The HTTP gateway: HTTP in, the framed protocol out.
//!
//! It has no privileges and decides nothing. Each HTTP request becomes one request to the daemon,
//! made in the name of whoever the daemon finds at the other end of the HTTP client's socket.
//!
//! ```text
//! gateway    the process: accepts connections, checks what has to be true of every request
//!  ├ routes   what there is, in one table; the OpenAPI document is made of it
//!  ├ api      what each of them does
//!  ├ assets   the pages
//!  ├ events   what happens, for all who want to know
//!  ├ answer   bodies, and errors as problem documents
//!  └ upstream the way to the daemon
//! loopback   the same for one user, without a gateway (`deployer UI`)
//! ```

mod answer;
mod api;
mod assets;
mod events;
pub mod gateway;
pub mod loopback;
mod routes;
mod upstream;
