//! A [`Summary`](crate::Summary) for people and for other programs.

mod table;
