//! The lock.
#![no_std]
