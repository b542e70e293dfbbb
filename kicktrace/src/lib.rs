//! The xentrace reader.
