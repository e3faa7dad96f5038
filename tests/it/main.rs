//! Tests of the whole: a real daemon, real clients, real users.
//!
//! Each chapter of the cases has its file; the number of a case begins the name of its test.
//! Tests that need several users need root: without it they say that they were skipped, and
//! with `DEPLOYER_TEST_ROOT=1` they fail instead.

#[macro_use]
mod harness;
mod acceptance;
mod asking;
mod browser;
mod child;
mod clients;
mod config;
mod examples;
mod git;
mod http;
mod kills;
mod layers;
mod records;
mod runs;
mod service;
mod software;
mod sources;
mod supervision;
mod talk;
mod terminal;
