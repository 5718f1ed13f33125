//! Many requests at once, large ones, and clients that vanish.

use bytes::Bytes;
use proto::client::{ClientError, IO_BYTES_MAX};
use proto::inode::INODE_BYTES;
use proto::sd::header::{ObjRequest, RequestVariant};
use proto::sd::{Opcode, Request, ResultCode, flag};
use proto::{Oid, Vid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::yield_now;

use super::fake::Fake;
use super::{Sheep, run};

const VID: Vid = Vid(0xa03907);

async fn sheep_with_alice() -> Sheep {
    let sheep = Sheep::new(Fake::formatted(1, 0));
    let create = Request::new_vdi(b"alice", 64 << 20, None, None).unwrap();
    assert_eq!(sheep.result(&create).await, ResultCode::SUCCESS);
    sheep
}

#[test]
fn small_requests_are_answered_while_a_large_one_before_them_waits() {
    run(async {
        let sheep = sheep_with_alice().await;
        let slow = Oid::data(VID, 0);
        let gate = sheep.fake.hold(slow);
        let mut client = sheep.connect();
        client.send(&Request::create_obj(slow, 0, None, vec![1; 4 << 20].into()).id(100)).await;
        for id in 0..5 {
            client.send(&Request::read_obj(Oid::inode(VID), 0, 1).id(id)).await;
        }
        for id in 0..5 {
            assert_eq!(client.receive().await.0.id, id);
        }
        assert_eq!(sheep.desk.requests_in_flight(), 1);
        gate.add_permits(1);
        assert_eq!(client.receive().await.0.id, 100);
        assert_eq!(sheep.desk.requests_in_flight(), 0);
    });
}

#[test]
fn requests_reach_the_service_in_the_order_of_arrival() {
    run(async {
        let sheep = sheep_with_alice().await;
        let oid = Oid::data(VID, 0);
        let mut client = sheep.connect();
        client.send(&Request::create_obj(oid, 0, None, Bytes::new())).await;
        for id in 1..=200u32 {
            client.send(&Request::write_obj(oid, 0, id.to_le_bytes().to_vec().into()).id(id)).await;
        }
        for _ in 0..=200 {
            assert_eq!(client.receive().await.0.result, ResultCode::SUCCESS);
        }
        let (_, last) = client.call(&Request::read_obj(oid, 0, 4)).await;
        assert_eq!(last, 200u32.to_le_bytes());
    });
}

#[test]
fn a_client_that_sends_faster_than_it_is_served_waits_in_its_own_socket() {
    run(async {
        let sheep = sheep_with_alice().await;
        let slow = Oid::data(VID, 0);
        let gate = sheep.fake.hold(slow);
        let client = sheep.connect();
        let (mut read, mut write) = tokio::io::split(client.stream);
        let request = Request::create_obj(slow, 0, None, vec![1; 4 << 20].into());
        let sender = tokio::task::spawn_local(async move {
            for id in 0..40 {
                let request = request.clone().id(id);
                write.write_all(&request.encode_header()).await.unwrap();
                write.write_all(&request.payload).await.unwrap();
            }
            write
        });
        let taken = || sheep.fake.world().log.len();
        // Until nothing moves any more: as many turns as the bytes of all requests could need.
        for _ in 0..20_000 {
            yield_now().await;
        }
        let most = super::super::server::IN_FLIGHT_BYTES_MAX as usize / (4 << 20);
        assert!((2..=most + 1).contains(&taken()), "{} of 40 requests were taken", taken());
        assert!(!sender.is_finished());
        gate.add_permits(40);
        for _ in 0..40 {
            let mut header = [0; 48];
            read.read_exact(&mut header).await.unwrap();
        }
        sender.await.unwrap();
    });
}

#[test]
fn a_request_that_arrived_whole_is_carried_out_although_its_client_has_gone() {
    run(async {
        let sheep = sheep_with_alice().await;
        let mut client = sheep.connect();
        let whole = Oid::data(VID, 0);
        client.send(&Request::create_obj(whole, 0, None, vec![1; 4096].into())).await;
        let partial = Request::create_obj(Oid::data(VID, 1), 0, None, vec![2; 4096].into());
        client.stream.write_all(&partial.encode_header()).await.unwrap();
        client.stream.write_all(&partial.payload[..4095]).await.unwrap();
        let ended = client.close().await;
        assert!(ended.is_err());
        assert_eq!(sheep.fake.world().objects.keys().copied().collect::<Vec<_>>(), [whole]);
        assert_eq!(sheep.desk.requests_in_flight(), 0);
    });
}

#[test]
fn a_connection_waits_a_while_for_its_requests_to_end() {
    run(async {
        let sheep = sheep_with_alice().await;
        let slow = Oid::data(VID, 0);
        let gate = sheep.fake.hold(slow);
        let mut client = sheep.connect();
        client.send(&Request::create_obj(slow, 0, None, vec![1; 4096].into())).await;
        while sheep.desk.requests_in_flight() == 0 {
            yield_now().await;
        }
        drop(client.stream);
        for _ in 0..100 {
            yield_now().await;
        }
        assert!(!client.serving.is_finished());
        gate.add_permits(1);
        let _ = client.serving.await.unwrap();
        assert_eq!(sheep.desk.requests_in_flight(), 0);
    });
}

#[test]
fn when_a_reply_cannot_be_delivered_the_requests_behind_it_are_dropped() {
    // Many times: whether the reader or the news of the loss comes first must not be left to chance.
    for _ in 0..20 {
        run(async {
            let sheep = sheep_with_alice().await;
            let slow = Oid::data(VID, 0);
            let gate = sheep.fake.hold(slow);
            let mut client = sheep.connect();
            client.send(&Request::read_obj(slow, 0, IO_BYTES_MAX)).await;
            // No room for a second one, so these wait in the socket.
            client.send(&Request::read_obj(slow, 0, IO_BYTES_MAX)).await;
            let duplicate = Oid::data(VID, 1);
            client.send(&Request::create_obj(duplicate, 0, None, vec![1; 512].into())).await;
            while sheep.desk.requests_in_flight() == 0 {
                yield_now().await;
            }
            drop(client.stream);
            gate.add_permits(2);
            assert!(client.serving.await.unwrap().is_err());
            assert!(sheep.fake.world().objects.is_empty(), "the client has sent its CREATE again elsewhere");
        });
    }
}

#[test]
fn what_a_client_has_left_behind_in_its_socket_is_not_carried_out() {
    run(async {
        let sheep = sheep_with_alice().await;
        let slow = Oid::data(VID, 0);
        let gate = sheep.fake.hold(slow);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let serving = super::super::serve_tcp(accepted, sheep.fake.clone(), sheep.desk.clone(), Bytes::new());
        let serving = tokio::task::spawn_local(serving);
        let duplicate = Oid::data(VID, 1);
        // Two take the whole budget, the third has to wait in the socket.
        let large = Request::write_obj(slow, 0, vec![1; IO_BYTES_MAX as usize - (64 << 10)].into());
        let last = Request::create_obj(duplicate, 0, None, vec![1; 512].into());
        for request in [&large, &large, &last] {
            tcp.write_all(&request.encode_header()).await.unwrap();
            tcp.write_all(&request.payload).await.unwrap();
        }
        while sheep.desk.requests_in_flight() < 2 {
            tokio::task::yield_now().await;
        }
        // The end of the connection is behind what was not read: replies still seem to get through.
        drop(tcp);
        gate.add_permits(1);
        assert!(serving.await.unwrap().is_err());
        assert!(sheep.fake.world().objects.is_empty(), "the client has sent its CREATE again elsewhere");
        assert_eq!(sheep.desk.requests_in_flight(), 0);
        assert_eq!(sheep.fake.given_up.get(), 1, "the second one");
    });
}

#[test]
fn what_cannot_be_answered_soon_after_the_client_has_gone_is_given_up() {
    run(async {
        let sheep = sheep_with_alice().await;
        sheep.fake.hold(Oid::data(VID, 0));
        let mut client = sheep.connect();
        client.send(&Request::create_obj(Oid::data(VID, 0), 0, None, vec![1; 512].into())).await;
        while sheep.desk.requests_in_flight() == 0 {
            yield_now().await;
        }
        tokio::time::pause();
        let started = tokio::time::Instant::now();
        client.close().await.unwrap();
        assert_eq!(started.elapsed().as_millis() / 100, super::super::server::PARTING.as_millis() / 100);
        assert_eq!(sheep.fake.given_up.get(), 1);
        assert_eq!(sheep.desk.requests_in_flight(), 0);
    });
}

#[test]
fn too_long_a_payload_is_read_past_and_the_connection_goes_on() {
    run(async {
        let sheep = sheep_with_alice().await;
        let mut client = sheep.connect();
        let calls = sheep.fake.world().log.len();
        let (reply, _) = client
            .call(&Request::write_obj(Oid::data(VID, 0), 0, vec![0; (IO_BYTES_MAX + 1) as usize].into()))
            .await;
        assert_eq!(reply.result, ResultCode::INVALID_PARMS);
        let mut nameless = Request::new_vdi(b"bob", 1, None, None).unwrap();
        nameless.payload = vec![b'b'; 1000].into();
        nameless.header.data_length = 1000;
        assert_eq!(client.call(&nameless).await.0.result, ResultCode::INVALID_PARMS);
        assert_eq!(sheep.fake.world().log.len(), calls, "the service was not asked");
        assert_eq!(client.call(&Request::read_obj(Oid::inode(VID), 0, 1)).await.1, b"a");
    });
}

#[test]
fn ranges_beyond_the_end_of_an_object_are_refused() {
    run(async {
        let sheep = sheep_with_alice().await;
        let object = Oid::data(VID, 0);
        let mut client = sheep.connect();
        client.call(&Request::create_obj(object, 0, None, Bytes::new())).await;
        let far = |mut request: Request, offset: u32, offset_high: u32| {
            let old = ObjRequest::decode(&request.header.variant);
            request.header.variant = ObjRequest { offset, offset_high, ..old }.encode();
            request
        };
        let inode = Oid::inode(VID);
        let refused = [
            Request::read_obj(object, (4 << 20) - 1, 2),
            Request::write_obj(object, (4 << 20) - 1, vec![1; 2].into()),
            Request::create_obj(object, 4 << 20, None, vec![1].into()),
            Request::read_obj(object, 0, IO_BYTES_MAX + 1),
            Request::read_obj(object, u32::MAX, u32::MAX),
            Request::read_obj(inode, INODE_BYTES as u32, 1),
            Request::read_obj(inode, 0, INODE_BYTES as u32 + 1),
            far(Request::read_obj(object, 0, 1), 0, 1),
            // Several kinds at once, a reserved bit, an inode with an index: ids of nothing.
            Request::read_obj(Oid(object.0 | 3 << 62), 0, 1),
            Request::read_obj(Oid(object.0 | 1 << 57), 0, 1),
            Request::write_obj(Oid(inode.0 | 1), 0, vec![1].into()),
        ];
        for request in refused {
            let (reply, payload) = client.call(&request).await;
            assert_eq!((reply.result, payload.len()), (ResultCode::INVALID_PARMS, 0), "{:?}", request.header);
        }
        let (reply, read) = client.call(&Request::read_obj(inode, 0, INODE_BYTES as u32)).await;
        assert_eq!((reply.result, read.len()), (ResultCode::SUCCESS, INODE_BYTES));
        let (reply, read) = client.call(&Request::read_obj(object, (4 << 20) - 1, 1)).await;
        assert_eq!((reply.result, read.len()), (ResultCode::SUCCESS, 1));
    });
}

#[test]
fn objects_that_are_not_kept_are_absent_and_cannot_be_written() {
    run(async {
        let sheep = sheep_with_alice().await;
        for kind in [59, 60, 61] {
            let oid = Oid(Oid::data(VID, 0).0 | 1 << kind);
            assert_eq!(sheep.result(&Request::read_obj(oid, 0, 8)).await, ResultCode::NO_OBJ);
            let write = Request::create_obj(oid, 0, None, vec![0; 8].into());
            assert_eq!(sheep.result(&write).await, ResultCode::NO_SUPPORT);
        }
        let nobody = Oid::data(Vid(0), 0);
        assert_eq!(sheep.result(&Request::read_obj(nobody, 0, 8)).await, ResultCode::NO_OBJ);
        let absent = Oid::data(VID, 77);
        assert_eq!(sheep.result(&Request::read_obj(absent, 0, 8)).await, ResultCode::NO_OBJ);
        assert_eq!(sheep.result(&Request::write_obj(absent, 0, vec![1].into())).await, ResultCode::NO_OBJ);
        let stranger = Oid::inode(Vid(9));
        assert_eq!(sheep.result(&Request::read_obj(stranger, 0, 8)).await, ResultCode::NO_OBJ);
    });
}

#[test]
fn a_write_without_its_flag_is_refused_and_an_empty_create_is_not() {
    run(async {
        let sheep = sheep_with_alice().await;
        let oid = Oid::data(VID, 0);
        let mut create = Request::create_obj(oid, 0, None, Bytes::new());
        create.header.flags = 0;
        assert_eq!(sheep.result(&create).await, ResultCode::SUCCESS);
        assert_eq!(sheep.fake.world().objects[&oid], vec![0; 4 << 20]);
        create.header.data_length = 512;
        assert_eq!(sheep.result(&create).await, ResultCode::INVALID_PARMS);
        let mut read = Request::read_obj(oid, 0, 4);
        read.header.flags = flag::WRITE;
        read.payload = Bytes::from_static(b"abcd");
        assert_eq!(sheep.result(&read).await, ResultCode::INVALID_PARMS);
    });
}

#[test]
fn every_refusal_of_the_service_reaches_the_client_as_its_code() {
    run(async {
        use ClientError::*;
        let sheep = sheep_with_alice().await;
        let mut client = sheep.connect();
        for (error, of_object, of_new_vdi, of_flush) in [
            (NoVdi, 0x02, 0x08, 0x00),
            (NoTag, 0x0e, 0x0e, 0x0e),
            (VdiExists, 0x04, 0x04, 0x04),
            (NoFreeVid, 0x13, 0x13, 0x13),
            (Locked, 0x07, 0x07, 0x07),
            (NoObject, 0x02, 0x02, 0x02),
            (ReadOnly, 0x1a, 0x1a, 0x00),
            (StaleInode, 0x1d, 0x1d, 0x1d),
            (InvalidParameters, 0x05, 0x05, 0x06),
            (OutOfRange, 0x05, 0x05, 0x06),
            (NoSpace, 0x15, 0x15, 0x15),
            (WaitForFormat, 0x16, 0x16, 0x16),
            (WaitForJoin, 0x17, 0x17, 0x17),
            (ShuttingDown, 0x11, 0x11, 0x11),
            (NoStorage, 0x19, 0x0b, 0x19),
            (Unsupported("that".into()), 0x8b, 0x8b, 0x8b),
            (Io, 0x03, 0x03, 0x03),
        ] {
            sheep.fake.world().refusal = Some(error.clone());
            let oid = Oid::data(VID, 0);
            let mut flush = Request::plain(Opcode::FlushVdi, 0);
            flush.header.variant = ObjRequest { oid: Oid::inode(VID), ..Default::default() }.encode();
            for (request, code) in [
                (Request::read_obj(oid, 0, 512), of_object),
                (Request::write_obj(oid, 0, vec![1; 512].into()), of_object),
                (Request::new_vdi(b"bob", 1, None, None).unwrap(), of_new_vdi),
                (flush, of_flush),
            ] {
                let (reply, payload) = client.call(&request).await;
                assert_eq!((reply.result, payload.len()), (ResultCode(code), 0), "{error:?}");
                assert_eq!(reply.variant, [0; 28], "{error:?}");
            }
        }
    });
}

#[test]
fn what_was_read_before_is_served_first() {
    run(async {
        let sheep = sheep_with_alice().await;
        let request = Request::write_obj(Oid::data(VID, 0), 0, vec![1; 100].into());
        let (mut stream, served) = tokio::io::duplex(4096);
        let bytes = [&request.encode_header()[..], &request.payload].concat();
        let (first, rest) = bytes.split_at(60);
        let first = Bytes::copy_from_slice(first);
        let serving = super::serve_connection(served, sheep.fake.clone(), sheep.desk.clone(), first);
        let serving = tokio::task::spawn_local(serving);
        stream.write_all(rest).await.unwrap();
        let mut client = super::Client { stream, serving };
        assert_eq!(client.receive().await.0.result, ResultCode::NO_OBJ);
        client.close().await.unwrap();
    });
}

#[test]
fn the_unix_socket_and_tcp_speak_the_same() {
    run(async {
        let sheep = sheep_with_alice().await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let unix = super::super::serve_unix(listener, sheep.fake.clone(), sheep.desk.clone());
        let unix = tokio::task::spawn_local(unix);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let serving = super::super::serve_tcp(accepted, sheep.fake.clone(), sheep.desk.clone(), Bytes::new());
        let serving = tokio::task::spawn_local(serving);

        let request = Request::read_obj(Oid::inode(VID), 0, 5).id(3);
        let unix_stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        assert_eq!(ask(unix_stream, &request).await[48..], *b"alice");
        assert_eq!(ask(tcp, &request).await[48..], *b"alice");
        serving.await.unwrap().unwrap();
        unix.abort();
    });
}

/// One request, then the end of it; everything that comes back.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &Request) -> Vec<u8> {
    stream.write_all(&request.encode_header()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    reply
}
