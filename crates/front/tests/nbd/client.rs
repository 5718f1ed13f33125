//! A client of NBD that writes and expects exact bytes.

use std::future::Future;
use std::time::Duration;

use front::nbd::wire::{Framing, RequestHeader, option};
use front::nbd::{Ending, Limits, serve_connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use crate::memory::Memory;

/// Runs a test as the sheep would: one thread, paused clock.
pub fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        // The clock only runs when nothing else can: this ends what hangs.
        tokio::time::timeout(Duration::from_secs(3600), test).await.expect("the test hangs");
    });
}

pub struct Client {
    pub io: DuplexStream,
    pub server: JoinHandle<Ending>,
}

impl Client {
    /// Connected, with the greeting and the client's flags exchanged.
    pub async fn connect(memory: &Memory) -> Client {
        Client::connect_with(memory, Limits::default(), 64 << 10).await
    }

    pub async fn connect_with(memory: &Memory, limits: Limits, socket_bytes: usize) -> Client {
        let (io, theirs) = tokio::io::duplex(socket_bytes);
        let memory = memory.clone();
        let server = tokio::task::spawn_local(async move {
            serve_connection(theirs, memory, &limits, &Default::default()).await
        });
        let mut client = Client { io, server };
        client.expect(b"NBDMAGICIHAVEOPT\0\x03").await;
        client.send(&[0, 0, 0, 3]).await;
        client
    }

    /// Connected to `name` and ready to send requests.
    pub async fn open(memory: &Memory, name: &str, framing: Framing) -> Client {
        Client::open_with(memory, name, framing, Limits::default(), 64 << 10).await
    }

    pub async fn open_with(
        memory: &Memory,
        name: &str,
        framing: Framing,
        limits: Limits,
        bytes: usize,
    ) -> Client {
        let client = Client::connect_with(memory, limits, bytes).await;
        client.choose(name, framing, &["base:allocation"]).await
    }

    /// Connected to `name`, with these metadata contexts: the first has id 1, and so on.
    pub async fn open_in_contexts(
        memory: &Memory,
        name: &str,
        framing: Framing,
        contexts: &[&str],
    ) -> Client {
        Client::connect(memory).await.choose(name, framing, contexts).await
    }

    async fn choose(mut self, name: &str, framing: Framing, contexts: &[&str]) -> Client {
        let client = &mut self;
        if framing != Framing::Simple {
            let chosen = match framing {
                Framing::Extended => option::EXTENDED_HEADERS,
                _ => option::STRUCTURED_REPLY,
            };
            client.option(chosen, b"").await;
            client.expect_option_reply(chosen, 1, b"").await;
            client.option(option::SET_META_CONTEXT, &meta_query(name, contexts)).await;
            for (id, context) in (1u32..).zip(contexts) {
                let reply = [&id.to_be_bytes(), context.as_bytes()].concat();
                client.expect_option_reply(option::SET_META_CONTEXT, 4, &reply).await;
            }
            client.expect_option_reply(option::SET_META_CONTEXT, 1, b"").await;
        }
        client.option(option::GO, &info_query(name, &[])).await;
        let (_, first, _) = client.option_reply().await;
        let (_, second, _) = client.option_reply().await;
        assert_eq!((first, second), (3, 3));
        client.expect_option_reply(option::GO, 1, b"").await;
        self
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    pub async fn option(&mut self, option: u32, data: &[u8]) {
        let len = (data.len() as u32).to_be_bytes();
        self.send(&[b"IHAVEOPT", &option.to_be_bytes()[..], &len, data].concat()).await;
    }

    pub async fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        let head = self.take(20).await;
        assert_eq!(head[..8], 0x3e889045565a9u64.to_be_bytes());
        let code = |at| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let data = self.take(code(16) as usize).await;
        (code(8), code(12), data)
    }

    pub async fn expect_option_reply(&mut self, option: u32, reply: u32, data: &[u8]) {
        let (got_option, got_reply, got) = self.option_reply().await;
        let text = String::from_utf8_lossy(&got);
        assert_eq!((got_option, got_reply), (option, reply), "{text}");
        assert_eq!(got, data, "{text}");
    }

    /// An error reply; its message is for people.
    pub async fn expect_option_error(&mut self, option: u32, error: u32) {
        let (got_option, got_reply, message) = self.option_reply().await;
        assert_eq!((got_option, got_reply), (option, 1 << 31 | error));
        assert!(!message.is_empty());
    }

    pub async fn request(&mut self, framing: Framing, header: (u16, u16, u64, u64, u64), payload: &[u8]) {
        let (flags, command, cookie, offset, length) = header;
        let header = RequestHeader { flags, command, cookie, offset, length }.encode(framing);
        self.send(&[&header, payload].concat()).await;
    }

    pub async fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.io.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    pub async fn expect(&mut self, bytes: &[u8]) {
        let got = self.take(bytes.len()).await;
        assert_eq!(got, bytes, "got {:?}", String::from_utf8_lossy(&got));
    }

    /// The server says nothing more and ends.
    pub async fn expect_end(mut self) -> Ending {
        let mut rest = Vec::new();
        self.io.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
        self.server.await.unwrap()
    }

    /// Vanishes, and waits until the server has noticed.
    pub async fn vanish(self) -> Ending {
        drop(self.io);
        self.server.await.unwrap()
    }
}

pub fn info_query(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|code| data.extend_from_slice(&code.to_be_bytes()));
    data
}

pub fn meta_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend_from_slice(&string(query)));
    data
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}
