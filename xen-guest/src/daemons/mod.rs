//! Conversations with the host's daemons, through rings of bytes in shared pages: the console, and
//! xenstore.

pub mod console;
pub mod rings;
pub mod xenstore;
