//! Buffers of a process that has switched huge pages on: whatever their size, they are as others are.

use buffer::{ALIGNMENT, AlignedBuf, use_huge_pages};
use bytes::Bytes;

const SIZES: [usize; 9] =
    [1, 4096, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 700 << 10, 2 << 20, (2 << 20) + 1, 33 << 20];

fn filled(len: usize, with: u8) -> Bytes {
    let mut buffer = AlignedBuf::with_capacity(len);
    assert_eq!((buffer.len(), buffer.remaining()), (0, len));
    assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
    buffer.extend_from_slice(&vec![with; len]);
    buffer.freeze()
}

#[test]
fn nobody_else_writes_into_a_buffer_wherever_it_lies_and_wherever_it_ends() {
    use_huge_pages();
    let mut held: Vec<(Bytes, u8)> = Vec::new();
    for round in 0..120u8 {
        let len = SIZES[usize::from(round) % SIZES.len()];
        held.push((filled(len, round), round));
        if held.len() > 20 {
            // Every third is freed by another thread, and where one was there is soon another.
            let (bytes, with) = held.remove(usize::from(round) % held.len());
            assert!(bytes.iter().all(|b| *b == with));
            match round % 3 {
                0 => std::thread::spawn(move || drop(bytes)).join().unwrap(),
                _ => drop(bytes),
            }
        }
    }
    for (bytes, with) in held {
        assert!(bytes.iter().all(|b| *b == with), "{} bytes of {with}", bytes.len());
    }
}

#[test]
fn a_large_buffer_that_was_freed_is_used_again() {
    use_huge_pages();
    // More altogether than the arena has, one after the other, and with one that stays.
    let stays = filled(1 << 20, 7);
    let mut places = std::collections::BTreeSet::new();
    for round in 0..200u8 {
        places.insert(filled((1 << 20) + 4096, round).as_ptr() as usize);
    }
    assert!(places.len() < 60, "{} places for one buffer at a time", places.len());
    assert!(stays.iter().all(|b| *b == 7));
}
