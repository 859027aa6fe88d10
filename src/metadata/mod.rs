//! The host's side of the metadata service: a guest comes over HTTP, takes its command, and gives its log, its result, files and shells.
//!
//! A **service** is one task for one guest. Whoever listens gives it connections; whoever wants something of the guest calls it, and waits
//! while one of the guest's polls takes the action and a request of the guest replies to it. Source: taskcluster-worker at commit 595e1fa.

pub mod actions;
pub mod control;
pub mod endpoints;
pub mod host;
pub mod listener;
pub mod rest;
pub mod service;
pub mod shell;
