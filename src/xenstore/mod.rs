//! XenStore, the small tree of texts that a Xen guest shares with its host: a client of it.
//!
//! Sources: the Xen project's `xenstore.txt` and `xs_wire.h`, Linux's `xenbus_dev_frontend.c`, and what Debian's daemons 4.17 do.

pub mod client;
pub mod message;
