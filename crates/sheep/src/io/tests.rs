//! Tests of the behaviour of `io`.

use std::collections::BTreeMap;

use std::os::unix::fs::MetadataExt;

use super::*;

const ENGINES: [EngineChoice; 2] = [EngineChoice::Ring, EngineChoice::Threads];

/// Runs a task in a thread like the data plane's, over a file of a temporary directory.
fn with_disk<F: Future<Output = ()>>(
    choice: EngineChoice,
    task: impl FnOnce(Disk, mpsc::UnboundedReceiver<Completion>) -> F,
) {
    let dir = tempfile::tempdir().unwrap();
    let file = store::FileDisk::create(&dir.path().join("disk"), 8 << 20).unwrap().direct().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        match Disk::start(file, choice) {
            Ok((disk, completions)) => task(disk, completions).await,
            Err(error) if choice == EngineChoice::Ring => eprintln!("skipped, no io_uring here: {error}"),
            Err(error) => panic!("{error}"),
        }
    });
}

async fn one(
    disk: &Disk,
    completions: &mut mpsc::UnboundedReceiver<Completion>,
    deed: Deed,
) -> io::Result<Bytes> {
    disk.order(DiskOrder { id: 77, deed });
    disk.submit();
    let completion = completions.recv().await.unwrap();
    assert_eq!(completion.id, 77);
    completion.result
}

fn pattern(seed: u8, len: usize) -> Bytes {
    let mut buffer = AlignedBuf::with_capacity(len);
    buffer.extend_from_slice(&(0..len).map(|i| (i / 512) as u8 ^ seed).collect::<Vec<u8>>());
    buffer.freeze()
}

#[test]
fn what_is_written_is_read_back_whatever_the_memory_looks_like() {
    for choice in ENGINES {
        with_disk(choice, async |disk, mut completions| {
            let data = pattern(3, 64 << 10);
            let cases: Vec<Vec<Bytes>> = vec![
                vec![data.clone()],
                vec![data.slice(..4096), data.slice(4096..)],
                // Pieces that direct I/O would refuse.
                vec![data.slice(..1000), data.slice(1000..5000), data.slice(5000..)],
                data.chunks(48).map(Bytes::copy_from_slice).collect(),
            ];
            for (n, pieces) in cases.into_iter().enumerate() {
                let offset = (n as u64) << 20;
                for durable in [false, true] {
                    let deed = Deed::Write { offset, data: pieces.clone(), durable };
                    one(&disk, &mut completions, deed).await.unwrap();
                }
                one(&disk, &mut completions, Deed::Sync).await.unwrap();
                let read =
                    one(&disk, &mut completions, Deed::Read { offset, len: data.len() }).await.unwrap();
                assert_eq!(read, data, "{choice:?}, case {n}");
                assert!((read.as_ptr() as usize).is_multiple_of(ALIGNMENT));
            }
        });
    }
}

#[test]
fn more_orders_than_the_queue_holds_are_all_carried_out() {
    for choice in ENGINES {
        with_disk(choice, async |disk, mut completions| {
            let blocks = 2000u64;
            for id in 0..blocks {
                let data = vec![pattern(id as u8, 4096)];
                disk.order(DiskOrder { id, deed: Deed::Write { offset: id * 4096, data, durable: false } });
            }
            disk.submit();
            for _ in 0..blocks {
                completions.recv().await.unwrap().result.unwrap();
            }
            for id in 0..blocks {
                disk.order(DiskOrder { id, deed: Deed::Read { offset: id * 4096, len: 4096 } });
            }
            disk.submit();
            let mut read = BTreeMap::new();
            for _ in 0..blocks {
                let completion = completions.recv().await.unwrap();
                read.insert(completion.id, completion.result.unwrap());
            }
            assert_eq!(read.len() as u64, blocks);
            assert!(read.iter().all(|(id, data)| *data == pattern(*id as u8, 4096)), "{choice:?}");
        });
    }
}

#[test]
fn a_file_is_made_larger_or_left_as_it_was() {
    for choice in ENGINES {
        with_disk(choice, async |disk, mut completions| {
            for size_bytes in [16 << 20, 16 << 20] {
                one(&disk, &mut completions, Deed::Grow { size_bytes }).await.unwrap();
            }
            let zeros =
                one(&disk, &mut completions, Deed::Read { offset: 12 << 20, len: 4096 }).await.unwrap();
            assert!(zeros.iter().all(|byte| *byte == 0));
            let file = disk.grower.file.clone();
            let metadata = || file.metadata().unwrap();
            assert!(metadata().len() == 16 << 20 && metadata().blocks() * 512 >= 16 << 20, "it is reserved");
            let error = one(&disk, &mut completions, Deed::Grow { size_bytes: 1 << 60 }).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(metadata().len(), 16 << 20);
        });
    }
}

#[test]
fn reading_beyond_the_end_is_an_error_and_not_zeros() {
    for choice in ENGINES {
        with_disk(choice, async |disk, mut completions| {
            let deed = Deed::Read { offset: (8 << 20) - 4096, len: 8192 };
            let error = one(&disk, &mut completions, deed).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{choice:?}");
            one(&disk, &mut completions, Deed::Read { offset: 0, len: 4096 }).await.unwrap();
        });
    }
}

#[test]
fn a_disk_that_is_dropped_waits_for_the_kernel() {
    for choice in ENGINES {
        with_disk(choice, async |disk, completions| {
            for id in 0..64 {
                disk.order(DiskOrder { id, deed: Deed::Read { offset: 0, len: 1 << 20 } });
            }
            disk.submit();
            drop(completions);
            drop(disk);
            tokio::task::yield_now().await;
        });
    }
}
