//! What each option is answered, byte by byte.

use front::nbd::wire::{Framing, option};
use front::nbd::{Ending, Limits};

use crate::client::{Client, info_query, meta_query, run};
use crate::memory::Memory;

const MIB: u64 = 1 << 20;
const UNSUP: u32 = 1;
const INVALID: u32 = 3;
const PLATFORM: u32 = 4;
const UNKNOWN: u32 = 6;
const SHUTDOWN: u32 = 7;
const TOO_BIG: u32 = 9;
const EXT_HEADER_REQD: u32 = 10;

fn memory() -> Memory {
    Memory::default().with_vdi("bob", 2 * MIB).with_vdi("alice", MIB).with_snapshot(
        "alice",
        "before",
        7,
        MIB / 2,
    )
}

#[test]
fn go_describes_the_export_and_opens_it() {
    run(async {
        let memory = memory();
        let mut client = Client::connect(&memory).await;
        client.option(option::GO, &info_query("alice", &[1, 2, 3, 99])).await;
        // Size 1 MiB; flags: flush, FUA, trim, write zeroes, multi-conn, cache, fast zero; no DF yet.
        client.expect_option_reply(7, 3, b"\0\0\0\0\0\0\0\x10\0\0\x0d\x6d").await;
        client.expect_option_reply(7, 3, b"\0\x01alice").await;
        client.expect_option_reply(7, 3, b"\0\x02Sheepdog VDI 2").await;
        client.expect_option_reply(7, 3, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0").await;
        client.expect_option_reply(7, 1, b"").await;
        assert_eq!(memory.open.get(), 1);
        assert!(matches!(client.vanish().await, Ending::Disconnected));
        assert_eq!(memory.open.get(), 0);
    });
}

#[test]
fn info_describes_without_opening() {
    run(async {
        let memory = memory();
        let mut client = Client::connect(&memory).await;
        client.option(option::STRUCTURED_REPLY, b"").await;
        client.expect_option_reply(8, 1, b"").await;
        client.option(option::INFO, &info_query("alice@before", &[])).await;
        client.expect_option_reply(6, 3, b"\0\0\0\0\0\0\0\x08\0\0\x0d\xef").await;
        client.expect_option_reply(6, 3, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0").await;
        client.expect_option_reply(6, 1, b"").await;
        assert_eq!(memory.open.get(), 0);
        client.option(option::ABORT, b"").await;
        client.expect_option_reply(2, 1, b"").await;
        assert!(matches!(client.expect_end().await, Ending::Refused(_)));
    });
}

#[test]
fn old_way_of_opening_gives_size_and_flags_with_or_without_zeroes() {
    run(async {
        let memory = memory();
        let mut client = Client::connect(&memory).await;
        client.option(option::EXPORT_NAME, b"bob").await;
        client.expect(b"\0\0\0\0\0\x20\0\0\x0d\x6d").await;
        client.request(Framing::Simple, (0, 3, 1, 0, 0), b"").await;
        client.expect(b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01").await;
        client.vanish().await;

        let (mut io, theirs) = tokio::io::duplex(4096);
        let (svc, limits) = (memory.clone(), Limits::default());
        let server = tokio::task::spawn_local(async move {
            front::nbd::serve_connection(theirs, svc, &limits, &Default::default()).await
        });
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        io.write_all(b"\0\0\0\x01IHAVEOPT\0\0\0\x01\0\0\0\x03bob").await.unwrap();
        let mut all = vec![0; 18 + 10 + 124];
        io.read_exact(&mut all).await.unwrap();
        assert_eq!(&all[18..28], b"\0\0\0\0\0\x20\0\0\x0d\x6d");
        assert_eq!(&all[28..], [0; 124]);
        drop(io);
        server.await.unwrap();
        assert_eq!(memory.open.get(), 0);
    });
}

#[test]
fn old_way_of_opening_ends_the_connection_where_there_is_no_export() {
    run(async {
        let mut client = Client::connect(&memory()).await;
        client.option(option::EXPORT_NAME, b"nobody").await;
        assert!(matches!(client.expect_end().await, Ending::Refused("no such VDI")));
    });
}

#[test]
fn list_names_vdis_and_their_snapshots_in_order() {
    run(async {
        let memory = memory().with_snapshot("alice", "", 10, MIB).with_snapshot("carol", "a:b", 2, MIB);
        let mut client = Client::connect(&memory).await;
        client.option(option::LIST, b"").await;
        client.expect_option_reply(3, 2, b"\0\0\0\x05aliceSheepdog VDI 2").await;
        client.expect_option_reply(3, 2, b"\0\0\0\x0calice@beforeSheepdog snapshot 3").await;
        client.expect_option_reply(3, 2, b"\0\0\0\x08alice:10Sheepdog snapshot 4").await;
        client.expect_option_reply(3, 2, b"\0\0\0\x03bobSheepdog VDI 1").await;
        client.expect_option_reply(3, 2, b"\0\0\0\x09carol@a:bSheepdog snapshot 5").await;
        client.expect_option_reply(3, 1, b"").await;
        for name in ["alice@before", "alice:10", "carol@a:b"] {
            client.option(option::INFO, &info_query(name, &[2])).await;
            assert_eq!(client.option_reply().await.1, 3, "{name}");
            while client.option_reply().await.1 != 1 {}
        }
        client.option(option::LIST, b"x").await;
        client.expect_option_error(3, INVALID).await;
    });
}

#[test]
fn names_without_export_are_unknown_and_the_handshake_goes_on() {
    run(async {
        let memory = memory();
        let mut client = Client::connect(&memory).await;
        for name in ["", "carol", "alice@after", "alice:8", "@before", "bob:7"] {
            client.option(option::GO, &info_query(name, &[])).await;
            client.expect_option_error(7, UNKNOWN).await;
        }
        client.option(option::GO, &info_query("alice:7", &[1])).await;
        assert_eq!(client.option_reply().await.2, b"\0\0\0\0\0\0\0\x08\0\0\x0d\x6f");
        client.expect_option_reply(7, 3, b"\0\x01alice:7").await;
    });
}

#[test]
fn failing_cluster_is_told_in_the_handshake() {
    run(async {
        use proto::client::ClientError;
        let memory = memory();
        let mut client = Client::connect(&memory).await;
        for (error, reply) in [
            (ClientError::ShuttingDown, SHUTDOWN),
            (ClientError::WaitForJoin, PLATFORM),
            (ClientError::WaitForFormat, PLATFORM),
            (ClientError::Io, PLATFORM),
        ] {
            for chosen in [option::GO, option::INFO, option::LIST] {
                *memory.fail_vdi.borrow_mut() = Some(error.clone());
                let data = if chosen == option::LIST { Vec::new() } else { info_query("alice", &[]) };
                client.option(chosen, &data).await;
                client.expect_option_error(chosen, reply).await;
            }
        }
        assert_eq!(memory.open.get(), 0);
        client.option(option::EXPORT_NAME, b"alice").await;
        client.expect(b"\0\0\0\0\0\x10\0\0\x0d\x6d").await;
        assert_eq!(memory.open.get(), 1);
    });
}

#[test]
fn meta_contexts_are_listed_and_set() {
    run(async {
        let mut client = Client::connect(&memory()).await;
        client.option(option::LIST_META_CONTEXT, &meta_query("alice", &[])).await;
        client.expect_option_error(9, INVALID).await;
        client.option(option::STRUCTURED_REPLY, b"").await;
        client.expect_option_reply(8, 1, b"").await;
        for queries in [&["base:"][..], &["x:y", "base:allocation"]] {
            client.option(option::LIST_META_CONTEXT, &meta_query("alice", queries)).await;
            client.expect_option_reply(9, 4, b"\0\0\0\0base:allocation").await;
            client.expect_option_reply(9, 1, b"").await;
        }
        for queries in [&[][..], &["base:"], &["qemu:dirty-bitmap:x", "base:allocations"]] {
            client.option(option::SET_META_CONTEXT, &meta_query("alice", queries)).await;
            client.expect_option_reply(10, 1, b"").await;
        }
        client.option(option::SET_META_CONTEXT, &meta_query("alice", &["base:allocation"])).await;
        client.expect_option_reply(10, 4, b"\0\0\0\x01base:allocation").await;
        client.expect_option_reply(10, 1, b"").await;
        client.option(option::SET_META_CONTEXT, &meta_query("carol", &["base:allocation"])).await;
        client.expect_option_error(10, UNKNOWN).await;
    });
}

#[test]
fn contexts_of_changes_are_listed_and_set() {
    run(async {
        let memory = memory().with_snapshot("alice", "after", 8, MIB);
        let mut client = Client::connect(&memory).await;
        client.option(option::STRUCTURED_REPLY, b"").await;
        client.expect_option_reply(8, 1, b"").await;
        let lists: [(&str, &[&[u8]]); 3] = [
            ("alice", &[b"base:allocation", b"qemu:dirty-bitmap:before", b"qemu:dirty-bitmap:after"]),
            ("alice@after", &[b"base:allocation", b"qemu:dirty-bitmap:before"]),
            ("bob", &[b"base:allocation"]),
        ];
        for (name, expect) in lists {
            client.option(option::LIST_META_CONTEXT, &meta_query(name, &[])).await;
            for context in expect {
                client.expect_option_reply(9, 4, &[b"\0\0\0\0", *context].concat()).await;
            }
            client.expect_option_reply(9, 1, b"").await;
        }
        let queries =
            ["qemu:dirty-bitmap:nothing", "qemu:dirty-bitmap:8", "base:allocation", "qemu:dirty-bitmap:"];
        client.option(option::SET_META_CONTEXT, &meta_query("alice", &queries)).await;
        client.expect_option_reply(10, 4, b"\0\0\0\x01base:allocation").await;
        client.expect_option_reply(10, 4, b"\0\0\0\x02qemu:dirty-bitmap:8").await;
        client.expect_option_reply(10, 1, b"").await;
        client.option(option::SET_META_CONTEXT, &meta_query("carol", &["qemu:dirty-bitmap:before"])).await;
        client.expect_option_error(10, UNKNOWN).await;
        *memory.fail_vdi.borrow_mut() = Some(proto::client::ClientError::ShuttingDown);
        client.option(option::SET_META_CONTEXT, &meta_query("alice", &["qemu:dirty-bitmap:8"])).await;
        client.expect_option_error(10, SHUTDOWN).await;
    });
}

#[test]
fn no_more_contexts_are_chosen_than_a_connection_may_have() {
    run(async {
        let many = (1..30).fold(Memory::default().with_vdi("alice", MIB), |memory, id| {
            memory.with_snapshot("alice", &format!("tag{id}"), id, MIB)
        });
        let mut client = Client::connect(&many).await;
        client.option(option::STRUCTURED_REPLY, b"").await;
        client.expect_option_reply(8, 1, b"").await;
        let names: Vec<String> = (1..18).map(|id| format!("qemu:dirty-bitmap:{id}")).collect();
        let names: Vec<&str> = names.iter().map(|name| &name[..]).collect();
        client.option(option::SET_META_CONTEXT, &meta_query("alice", &names)).await;
        client.expect_option_error(10, TOO_BIG).await;
        client.option(option::SET_META_CONTEXT, &meta_query("alice", &names[..16])).await;
        for (id, name) in (1u32..).zip(&names[..16]) {
            client.expect_option_reply(10, 4, &[&id.to_be_bytes(), name.as_bytes()].concat()).await;
        }
        client.expect_option_reply(10, 1, b"").await;
    });
}

#[test]
fn context_of_another_export_does_not_count() {
    run(async {
        let mut client = Client::connect(&memory()).await;
        client.option(option::STRUCTURED_REPLY, b"").await;
        client.expect_option_reply(8, 1, b"").await;
        client.option(option::SET_META_CONTEXT, &meta_query("bob", &["base:allocation"])).await;
        client.expect_option_reply(10, 4, b"\0\0\0\x01base:allocation").await;
        client.expect_option_reply(10, 1, b"").await;
        client.option(option::GO, &info_query("alice", &[])).await;
        for _ in 0..3 {
            client.option_reply().await;
        }
        client.request(Framing::Structured, (0, 7, 5, 0, 4096), b"").await;
        client.expect(b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x05\0\0\0\x28\0\0\0\x16\0\x22").await;
        client.expect(b"alice: no metadata context was set").await;
    });
}

#[test]
fn structured_replies_are_no_more_once_headers_are_extended() {
    run(async {
        let mut client = Client::connect(&memory()).await;
        for (chosen, data, error) in [
            (option::EXTENDED_HEADERS, &b"x"[..], Some(INVALID)),
            (option::STRUCTURED_REPLY, b"x", Some(INVALID)),
            (option::STRUCTURED_REPLY, b"", None),
            (option::EXTENDED_HEADERS, b"", None),
            (option::STRUCTURED_REPLY, b"", Some(EXT_HEADER_REQD)),
        ] {
            client.option(chosen, data).await;
            match error {
                Some(error) => client.expect_option_error(chosen, error).await,
                None => client.expect_option_reply(chosen, 1, b"").await,
            }
        }
        client.option(option::INFO, &info_query("bob", &[])).await;
        // DF and a filter for block status on top.
        client.expect_option_reply(6, 3, b"\0\0\0\0\0\0\0\x20\0\0\x1d\xed").await;
    });
}

#[test]
fn unknown_malformed_and_long_options_are_refused_and_the_handshake_goes_on() {
    run(async {
        let mut client = Client::connect(&memory()).await;
        client.option(option::STARTTLS, b"").await;
        client.expect_option_error(5, UNSUP).await;
        client.option(4711, b"whatever").await;
        client.expect_option_error(4711, UNSUP).await;
        for data in
            [&b""[..], b"\0\0\0\x09alice\0\0", b"\0\0\0\x05alice", b"\0\0\0\x05alice\0\x01", b"\0\0\0\0\0\0x"]
        {
            client.option(option::GO, data).await;
            client.expect_option_error(7, INVALID).await;
        }
        client.option(option::INFO, &vec![0; 1 << 20]).await;
        client.expect_option_error(6, TOO_BIG).await;
        client.option(option::LIST, b"").await;
        assert_eq!(client.option_reply().await.1, 2);
    });
}

#[test]
fn nonsense_ends_the_handshake() {
    run(async {
        for bytes in [
            &b"HTTP/1.1 GET / and so on"[..],
            b"IHAVEOPT\0\0\0\x06\x7f\xff\xff\xff",
            b"IHAVEOPT\0\0\0\x01\0\x01\0\0",
        ] {
            let mut client = Client::connect(&memory()).await;
            client.send(bytes).await;
            assert!(matches!(client.expect_end().await, Ending::Refused(_)), "{bytes:?}");
        }
        let mut client = Client::connect(&memory()).await;
        for _ in 0..128 {
            client.option(4711, b"").await;
            client.expect_option_error(4711, UNSUP).await;
        }
        client.option(4711, b"").await;
        assert!(matches!(client.expect_end().await, Ending::Refused("too many options")));
    });
}

#[test]
fn silent_clients_are_dropped_before_they_choose_and_never_after() {
    run(async {
        let memory = memory();
        let client = Client::connect(&memory).await;
        assert!(matches!(client.expect_end().await, Ending::TimedOut));
        let mut client = Client::connect(&memory).await;
        client.send(b"IHAVE").await;
        assert!(matches!(client.expect_end().await, Ending::TimedOut));

        let mut client = Client::open(&memory, "alice", Framing::Simple).await;
        tokio::time::sleep(std::time::Duration::from_secs(3000)).await;
        client.request(Framing::Simple, (0, 3, 1, 0, 0), b"").await;
        client.expect(b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01").await;
    });
}
