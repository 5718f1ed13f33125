//! A VDI does not hide a snapshot: no two things come to have one name for NBD.

use super::*;

impl Story {
    fn try_create(&mut self, name: &[u8]) -> Outcome {
        let action = Action::CreateVdi { name: name.to_vec(), size: 1, policy: None, block_size_shift: None };
        self.propose(0, action)
    }

    /// The new working VDI.
    fn snapshot(&mut self, vid: Vid, tag: &[u8]) -> Result<Vid, ClientError> {
        match self.propose(0, Action::Snapshot { vids: vec![vid], tag: tag.to_vec() }) {
            Ok(Accepted::Vdis(heads)) => Ok(heads[0]),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    }

    fn snap_id(&self, vid: Vid) -> u32 {
        self.view.vdi(vid).expect("it exists").snap_id
    }
}

const CLASH: Outcome = Err(ClientError::NameClash);

#[test]
fn a_vdi_is_not_named_like_a_snapshot() {
    let mut story = Story::of_three();
    let vid = story.create(b"a");
    let head = story.snapshot(vid, b"monday").unwrap();
    let clone = |name: &[u8]| Action::CloneVdi { base: vid, name: name.to_vec(), size: None, policy: None };
    for name in [&b"a@monday"[..], b"a:1", b"a:2"] {
        assert_eq!(story.try_create(name), CLASH, "{name:?}");
        assert_eq!(story.propose(1, clone(name)), CLASH, "{name:?}");
    }
    // No snapshot is called so, and every other name is as good as ever.
    for name in [&b"a@tuesday"[..], b"a:7", b"a@", b"b@monday", b"@monday", b"a@monday@x"] {
        assert!(story.try_create(name).is_ok(), "{name:?}");
    }
    // With the snapshot its name is free.
    story.propose(0, Action::DeleteVdi { vid }).unwrap();
    assert!(story.try_create(b"a@monday").is_ok());
    assert!(story.try_create(b"a:1").is_ok());
    assert_eq!(story.try_create(b"a:2"), CLASH, "the next snapshot of {head} has this id");
}

#[test]
fn a_snapshot_is_not_named_like_a_vdi() {
    let mut story = Story::of_three();
    let hiding = story.create(b"a@monday");
    let vid = story.create(b"a");
    assert_eq!(story.snapshot(vid, b"monday"), Err(ClientError::NameClash));
    // What an old client says first counts too.
    let describe =
        |vid, tag: &[u8]| Action::DescribeVdi { vid, tag: tag.to_vec(), vm_state_size: 0, vm_clock_nsec: 0 };
    story.propose(0, describe(vid, b"monday")).unwrap();
    assert_eq!(story.snapshot(vid, b""), Err(ClientError::NameClash));
    let head = story.snapshot(vid, b"tuesday").unwrap();
    assert_eq!(story.propose(0, describe(vid, b"monday")), CLASH);
    assert_eq!(story.view.lookup(b"a", &Selector::Tag(b"tuesday".to_vec())), Ok(vid));
    // A snapshot that is restored from a backup.
    let restored = story.create(b"dog-restore");
    let left = story.snapshot(restored, b"").unwrap();
    story.propose(0, Action::DeleteVdi { vid: left }).unwrap();
    let adopt = |tag: &[u8]| Action::Adopt { snapshot: restored, name: b"a".to_vec(), tag: tag.to_vec() };
    assert_eq!(story.propose(0, adopt(b"monday")), CLASH);
    assert_eq!(story.propose(0, adopt(b"wednesday")), Ok(Accepted::Vdi(restored)));
    // The VDI that was there is what its name means, as ever.
    assert_eq!(story.view.lookup(b"a@monday", &Selector::Working), Ok(hiding));
    story.propose(0, Action::DeleteVdi { vid: hiding }).unwrap();
    assert!(story.snapshot(head, b"monday").is_ok());
}

#[test]
fn a_tag_that_is_promised_is_not_hidden_before_it_is_given() {
    let mut story = Story::of_three();
    let vid = story.create(b"a");
    let opened = story.propose(1, Action::OpenSession { vid, last: Generation(0) }).unwrap();
    let Accepted::Session { generation } = opened else { panic!("{opened:?}") };
    let snapshot = Action::Snapshot { vids: vec![vid], tag: b"monday".to_vec() };
    let incarnation = story.view.incarnation(id(0)).unwrap();
    let proposal = Proposal { id: 1, action: snapshot };
    assert_eq!(story.hear(ClusterEvent::Message { from: id(0), incarnation, proposal }), None);
    let asked_at = story.view.must_rest(vid, generation).expect("the session is to come to rest");
    assert_eq!(story.try_create(b"a@monday"), CLASH);
    story.propose(1, Action::Rested { vid, generation, snapshot: asked_at }).unwrap();
    assert_eq!(story.view.lookup(b"a", &Selector::Tag(b"monday".to_vec())), Ok(vid));
}

#[test]
fn ids_that_would_be_hidden_are_passed_over() {
    let mut story = Story::of_three();
    story.create(b"a:1");
    story.create(b"a:3");
    let vid = story.create(b"a");
    assert_eq!(story.snap_id(vid), 2);
    let head = story.snapshot(vid, b"").unwrap();
    assert_eq!(story.snap_id(head), 4);
    let restored = story.create(b"dog-restore");
    let left = story.snapshot(restored, b"").unwrap();
    story.propose(0, Action::DeleteVdi { vid: left }).unwrap();
    assert!(story.try_create(b"a:5").is_ok());
    story.propose(0, Action::Adopt { snapshot: restored, name: b"a".to_vec(), tag: vec![] }).unwrap();
    assert_eq!((story.snap_id(restored), story.snap_id(head)), (4, 6));
}

#[test]
fn a_working_vdi_comes_back_under_its_name_only_where_it_hides_nothing() {
    let mut story = Story::of_three();
    let odd = story.create(b"a@monday");
    let head = story.snapshot(odd, b"").unwrap();
    story.propose(0, Action::DeleteVdi { vid: head }).unwrap();
    let vid = story.create(b"a");
    story.snapshot(vid, b"monday").unwrap();
    assert_eq!(story.propose(0, Action::Rollback { to: odd, force: false }), CLASH);
    story.propose(0, Action::DeleteVdi { vid }).unwrap();
    assert!(story.propose(0, Action::Rollback { to: odd, force: false }).is_ok());
}
