//! Event channels.
#![no_std]
