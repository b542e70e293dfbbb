//! Crates that kernels keep under a lock, each under `pvlock`: `cargo run --example NAME`.
//!
//! | example | what it shows |
//! |---|---|
//! | `talc` | an allocator that takes any `lock_api` lock as a parameter |
//! | `linked_list_allocator`, `buddy_system_allocator` | a heap without its own lock, as a `GlobalAlloc` under ours |
//! | `heapless` | a bounded queue for many producers and consumers |
//! | `generic_once_cell` | lazy statics; whoever comes while another makes the value sleeps |
//!
//! In each of them four vCPUs find the lock held and sleep in it before it is released; then they work. The
//! vCPUs are threads here. In a kernel `Threads` is that kernel's own `Platform`.
