//! What deleted snapshots and VDIs leave behind, and when it goes.

use super::*;

#[test]
fn a_tree_is_deleted_in_any_order_and_each_time_just_what_nobody_needs_goes() {
    let mut orders = vec![Vec::new()];
    for n in 0..5 {
        let longer = |order: &Vec<usize>| -> Vec<Vec<usize>> {
            (0..=order.len()).map(|at| [&order[..at], &[n], &order[at..]].concat()).collect()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    assert_eq!(orders.len(), 120);
    for order in orders {
        let (mut cluster, contents) = small_tree();
        let mut left: Vec<usize> = (0..5).collect();
        for n in &order {
            let vid = contents[*n].0;
            assert_eq!(cluster.ask(n % 2, ClientOp::Vdi(VdiOp::Delete { vid })), Ok(ClientReply::Done));
            // Before the answer, not some time after it.
            let when = format!("order {order:?} after {n}");
            assert_exact_objects(&mut cluster, &when);
            left.retain(|m| m != n);
            for (vid, content) in left.iter().map(|m| &contents[*m]) {
                for (offset, bytes) in [(0, &content[0]), (OBJECT_BYTES, &content[1])] {
                    let found = read(&mut cluster, 1, *vid, offset, bytes.len() as u64);
                    assert!(found == bytes, "{when}: {vid} at {offset}");
                }
            }
        }
        assert!(cluster.sheep.iter().all(|(_, _, store)| store.objects.is_empty()), "order {order:?}");
    }
}

#[test]
fn a_table_page_of_a_deleted_vdi_goes_when_the_last_one_that_read_it_has_its_own() {
    for cloned in [false, true] {
        let (mut cluster, _) = Cluster::with_disk(2);
        let vid = create(&mut cluster, "v");
        // A page of the table that names nothing.
        write(&mut cluster, 0, vid, 0, vec![1; 4096]);
        let all = VolumeOp::Discard { offset: 0, len: OBJECT_BYTES };
        cluster.ask(0, at(vid, Point::Head, all)).unwrap();
        let head = vids(snapshot(&mut cluster, vid, "t"))[0];
        let reader = if cloned {
            let made = clone(&mut cluster, vid, "c");
            vdi_op(&mut cluster, VdiOp::Delete { vid: head }).unwrap();
            made
        } else {
            head
        };
        assert_eq!(read(&mut cluster, 1, reader, 0, 4096)[..], [0; 4096]);
        vdi_op(&mut cluster, VdiOp::Delete { vid }).unwrap();
        // Whatever the deletion itself has set going is over.
        cluster.wait_ms(1500);
        assert_exact_objects(&mut cluster, "while the page is needed");
        assert!(cluster.sheep[0].2.objects.contains_key(&Oid::inode(vid)));
        write(&mut cluster, 1, reader, 5 * OBJECT_BYTES, vec![2; 4096]);
        cluster.wait_ms(1500);
        assert_exact_objects(&mut cluster, "when it is not needed any more");
        assert_eq!(read(&mut cluster, 0, reader, 5 * OBJECT_BYTES, 4096)[..], [2; 4096]);
    }
}

#[test]
fn what_becomes_free_while_tables_are_read_is_reclaimed_as_well() {
    let (mut cluster, _) = Cluster::with_disk(2);
    let vid = create(&mut cluster, "v");
    write(&mut cluster, 0, vid, 0, vec![1; 4096]);
    let head = vids(snapshot(&mut cluster, vid, "t"))[0];
    write(&mut cluster, 0, head, OBJECT_BYTES, vec![2; 4096]);
    // The other sheep owns it, and its table is asked for there.
    let copy = clone(&mut cluster, vid, "c");
    let all = VolumeOp::Discard { offset: 0, len: OBJECT_BYTES };
    cluster.ask(1, at(copy, Point::Head, all.clone())).unwrap();
    cluster.delays = Some(Box::new(move |_, message| {
        matches!(message, PeerMessage::Request { body: PeerRequest::Forward { op, .. }, .. }
            if matches!(op, ClientOp::Vdi(VdiOp::Table { vid, .. }) if *vid == copy))
    }));
    let deletion = cluster.begin(0, ClientOp::Vdi(VdiOp::Delete { vid }));
    cluster.run();
    assert!(!cluster.delayed.is_empty(), "it waits for one table, and has read the other");
    cluster.ask(0, at(head, Point::Head, all)).unwrap();
    cluster.wait_ms(2000);
    assert!(!cluster.answers.contains_key(&deletion));
    cluster.deliver_delayed();
    assert_eq!(cluster.answers.remove(&deletion), Some(Ok(ClientReply::Done)));
    cluster.wait_ms(2000);
    assert_exact_objects(&mut cluster, "when nothing refers to the object any more");
    assert_eq!(read(&mut cluster, 1, head, OBJECT_BYTES, 4096)[..], [2; 4096]);
}

#[test]
fn what_an_owner_has_let_go_of_and_did_not_live_to_tell_is_reclaimed() {
    // Sheep 0 owns the VDI and stores nothing.
    let (mut cluster, vid) = Cluster::with_gateway();
    write(&mut cluster, 0, vid, 0, vec![1; 4096]);
    let head = vids(snapshot(&mut cluster, vid, "t"))[0];
    write(&mut cluster, 0, head, OBJECT_BYTES, vec![2; 4096]);
    // It never hears that the table is on all copies.
    let owner = id_of(0);
    let writes_of_table = RefCell::new(BTreeSet::new());
    cluster.delays = Some(Box::new(move |to, message| match message {
        PeerMessage::Request { id, body: PeerRequest::Change { oid, .. }, .. } => {
            if *oid == Oid::inode(head) {
                writes_of_table.borrow_mut().insert(*id);
            }
            false
        }
        PeerMessage::Reply { id, .. } => to == owner && writes_of_table.borrow().contains(id),
        _ => false,
    }));
    cluster.begin(0, at(head, Point::Head, VolumeOp::Discard { offset: 0, len: OBJECT_BYTES }));
    cluster.run();
    assert_eq!(cluster.delayed.len(), 3);
    assert_eq!(cluster.ask(1, ClientOp::Vdi(VdiOp::Delete { vid })), Ok(ClientReply::Done));
    cluster.wait_ms(1000);
    let holders = |cluster: &Cluster| {
        cluster.sheep.iter().filter(|(_, _, store)| store.objects.contains_key(&Oid::data(vid, 0))).count()
    };
    assert_eq!(holders(&cluster), 3, "the change may not survive");
    // Cut off, it loses the session, and stays a member.
    let others: Vec<NodeId> = (1..4).map(id_of).collect();
    cluster.cut_links.extend(others.iter().flat_map(|other| [(owner, *other), (*other, owner)]));
    let op = VolumeOp::Read { offset: 0, len: 4096 };
    let request = cluster.begin(1, at(head, Point::Head, op));
    cluster.wait_ms(4500);
    let zeros = Bytes::from(vec![0; 4096]);
    assert_eq!(cluster.answers.remove(&request), Some(Ok(ClientReply::Data(zeros))));
    cluster.delays = None;
    cluster.delayed.clear();
    cluster.cut_links.clear();
    cluster.wait_ms(5000);
    assert_eq!(holders(&cluster), 0);
    assert_exact_objects(&mut cluster, "after the session was taken");
}
