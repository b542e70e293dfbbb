//! The client against an in-memory xenstored at the other end of the ring.

use super::*;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::string::ToString;

/// A xenstored with one domain, which works whenever the client waits: then it takes and puts at
/// most `stride` bytes, so that every message can be torn anywhere.
struct FakeStore<'a> {
    ring: &'a Ring,
    stride: usize,
    now: Cell<u64>,
    rings: Cell<u32>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    tree: BTreeMap<String, Vec<u8>>,
    watches: Vec<(String, String)>,
    request: Vec<u8>,
    reply: Vec<u8>,
    silent: bool,
    requests: usize,
}

impl<'a> FakeStore<'a> {
    fn new(ring: &'a Ring, stride: usize) -> Self {
        FakeStore {
            ring,
            stride,
            now: Cell::new(0),
            rings: Cell::new(0),
            state: RefCell::default(),
        }
    }

    fn work(&self) {
        let mut state = self.state.borrow_mut();
        if state.silent {
            return;
        }
        let mut buffer = vec![0; self.stride];
        let got = self.ring.requests().pop(&mut buffer).unwrap();
        state.request.extend_from_slice(&buffer[..got]);
        state.serve();
        let n = state.reply.len().min(self.stride);
        let put = self.ring.replies().push(&state.reply[..n]).unwrap();
        state.reply.drain(..put);
    }

    /// Somebody else, the toolstack say, writes.
    fn set(&self, path: &str, value: &[u8]) {
        self.state.borrow_mut().set(path, value);
    }
}

impl State {
    fn serve(&mut self) {
        let Some(header) = self.request.first_chunk().map(Header::from_bytes) else { return };
        let end = Header::SIZE + header.len as usize;
        if self.request.len() < end {
            return;
        }
        let payload: Vec<u8> = self.request.drain(..end).skip(Header::SIZE).collect();
        self.requests += 1;
        let (first, rest) = {
            let nul = payload.iter().position(|b| *b == 0).expect("a path ends with NUL");
            (String::from_utf8(payload[..nul].to_vec()).unwrap(), payload[nul + 1..].to_vec())
        };
        let answer = match header.kind {
            2 => self.tree.get(&first).cloned().ok_or("ENOENT"),
            11 if !first.starts_with("data") => Err("EACCES"),
            11 if rest.len() > 2048 => Err("ENOSPC"),
            11 => {
                self.set(&first, &rest);
                Ok(b"OK\0".to_vec())
            }
            1 => Ok(self
                .tree
                .keys()
                .filter_map(|path| path.strip_prefix(&first)?.strip_prefix('/'))
                .filter(|name| !name.contains('/'))
                .flat_map(|name| [name.as_bytes(), b"\0"].concat())
                .collect()),
            4 => {
                let token = String::from_utf8(rest[..rest.len() - 1].to_vec()).unwrap();
                self.watches.push((first.clone(), token.clone()));
                self.event(&first, &token);
                Ok(b"OK\0".to_vec())
            }
            13 => self.tree.remove(&first).map(|_| b"OK\0".to_vec()).ok_or("ENOENT"),
            _ => Err("ENOSYS"),
        };
        match answer {
            Ok(payload) => self.put(header, &payload),
            Err(name) => {
                self.put(Header { kind: 16, ..header }, &[name.as_bytes(), b"\0"].concat())
            }
        }
    }

    fn set(&mut self, path: &str, value: &[u8]) {
        self.tree.insert(path.to_string(), value.to_vec());
        for (watched, token) in self.watches.clone() {
            if path.starts_with(&watched) {
                self.event(path, &token);
            }
        }
    }

    fn event(&mut self, path: &str, token: &str) {
        let payload = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"].concat();
        self.put(Header { kind: 15, req_id: 0, tx_id: 0, len: 0 }, &payload);
    }

    fn put(&mut self, header: Header, payload: &[u8]) {
        let header = Header { len: payload.len() as u32, ..header };
        self.reply.extend_from_slice(&header.to_bytes());
        self.reply.extend_from_slice(payload);
    }
}

impl Link for &FakeStore<'_> {
    fn notify(&self) {
        self.rings.set(self.rings.get() + 1);
    }

    fn wait(&self, deadline_ns: u64) {
        self.now.set((self.now.get() + 1_000_000).min(deadline_ns));
        assert!(self.rings.get() > 0, "the client waits and has not rung");
        self.work();
    }

    fn now(&self) -> u64 {
        self.now.get()
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read_whatever_the_tearing(
        stride in 1usize..1200,
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 1..6),
    ) {
        let ring = Ring::new();
        let store = FakeStore::new(&ring, stride);
        let mut client = Client::new(&ring, &store);
        for (i, value) in values.iter().enumerate() {
            client.write(&format!("data/{i}"), value).unwrap();
        }
        for (i, value) in values.iter().enumerate() {
            prop_assert_eq!(&client.read(&format!("data/{i}")).unwrap(), value);
        }
        let names: Vec<String> = (0..values.len()).map(|i| i.to_string()).collect();
        prop_assert_eq!(client.directory("data").unwrap(), names);
    }

    #[test]
    fn no_reply_makes_the_client_panic(garbage in prop::collection::vec(any::<u8>(), 0..1024)) {
        let ring = Ring::new();
        let store = FakeStore::new(&ring, 64);
        store.state.borrow_mut().silent = true;
        ring.replies().push(&garbage).unwrap();
        let mut client = Client::new(&ring, &store);
        prop_assert!(client.read("data/x").is_err());
    }
}

#[test]
fn refusals_carry_xenstoreds_own_name() {
    let ring = Ring::new();
    let store = FakeStore::new(&ring, 100);
    let mut client = Client::new(&ring, &store);
    assert_eq!(client.read("data/none"), Err(Error::Refused("ENOENT".into())));
    assert_eq!(client.write("control/x", b""), Err(Error::Refused("EACCES".into())));
    assert_eq!(client.write("data/x", &[0; 3000]), Err(Error::Refused("ENOSPC".into())));
    client.write("data/x", b"1").unwrap();
    client.remove("data/x").unwrap();
    assert_eq!(client.remove("data/x"), Err(Error::Refused("ENOENT".into())));
}

#[test]
fn a_watch_fires_at_once_and_at_each_change_even_between_a_request_and_its_answer() {
    let ring = Ring::new();
    let store = FakeStore::new(&ring, 7);
    let mut client = Client::new(&ring, &store);
    client.watch("data/go", "start").unwrap();
    store.set("data/go", b"1");
    assert_eq!(client.read("data/go").unwrap(), b"1");
    let event = WatchEvent { path: "data/go".into(), token: "start".into() };
    assert_eq!(client.next_event(u64::MAX), Ok(Some(event.clone())));
    assert_eq!(client.next_event(u64::MAX), Ok(Some(event)));
    assert_eq!(client.next_event(store.now.get() + 5_000_000), Ok(None));
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let ring = Ring::new();
    let store = FakeStore::new(&ring, 1000);
    store.set("data/old", b"old");
    store.set("data/new", b"new");
    let mut client = Client::new(&ring, &store);
    store.state.borrow_mut().silent = true;
    assert_eq!(client.read("data/old"), Err(Error::Timeout));
    store.state.borrow_mut().silent = false;
    assert_eq!(client.read("data/new").unwrap(), b"new");
}

#[test]
fn after_a_request_that_did_not_fit_the_connection_is_given_up() {
    let ring = Ring::new();
    let store = FakeStore::new(&ring, 1000);
    store.state.borrow_mut().silent = true;
    let mut client = Client::new(&ring, &store);
    assert_eq!(client.write("data/x", &[0; 1500]), Err(Error::Timeout));
    store.state.borrow_mut().silent = false;
    assert!(matches!(client.read("data/x"), Err(Error::Protocol(_))));
    assert!(matches!(client.next_event(u64::MAX), Err(Error::Protocol(_))));
}

#[test]
fn what_cannot_be_asked_is_refused_before_a_byte_is_sent() {
    let ring = Ring::new();
    let store = FakeStore::new(&ring, 1000);
    let mut client = Client::new(&ring, &store);
    assert_eq!(client.write("data/x", &[0; 4096]), Err(Error::TooLong(4103)));
    assert_eq!(client.read("data/\0"), Err(Error::Nul));
    store.work();
    assert_eq!(store.state.borrow().requests, 0);
}

#[test]
fn a_payload_over_the_limit_is_a_broken_protocol() {
    let ring = Ring::new();
    let store = FakeStore::new(&ring, 1000);
    store.state.borrow_mut().silent = true;
    let header = Header { kind: 2, req_id: 1, tx_id: 0, len: 4097 };
    ring.replies().push(&header.to_bytes()).unwrap();
    let mut client = Client::new(&ring, &store);
    assert_eq!(client.read("data/x"), Err(Error::Protocol("a payload over 4096 bytes")));
}
