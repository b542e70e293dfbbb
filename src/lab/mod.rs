//! Makes a Xen host out of a plain Linux machine.
