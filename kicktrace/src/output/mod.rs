//! Records, intervals and a [`Summary`](crate::Summary) for people and for other programs.
//!
//! Owns formats only: nothing here counts or decides.

pub mod columns;
pub mod csv;
pub mod export;
pub mod gantt;
pub mod host;
pub mod html;
pub mod locks;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod perfetto;
pub mod record;
pub mod series;
pub mod story;
pub(crate) mod table;
pub mod top;
