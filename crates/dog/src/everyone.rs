//! The same question to all nodes at once, so that those that do not answer cost no more time than one of them.

use std::thread;

use proto::NodeId;

use crate::sheep::{Call, CallError, Sheep};
use crate::target::Target;

/// Connections at one time.
const AT_ONCE: usize = 64;

/// The answers, in the order of the nodes. A node that does not answer is given up after a few seconds: the question must be one that a sheep
/// answers by itself.
pub fn ask_all<T: Send>(nodes: &[NodeId], ask: impl Fn(&mut Sheep) -> Call<T> + Sync) -> Vec<Call<T>> {
    at_once(nodes, |node| ask(&mut Sheep::connect(&Target::node(node)).map_err(CallError::from)?))
}

/// Those that take connections and say nothing.
pub fn silent(nodes: &[NodeId]) -> Vec<NodeId> {
    let is_silent =
        |node| Sheep::connect_quietly(&Target::node(node)).is_ok_and(|mut sheep| sheep.is_silent());
    let found = at_once(nodes, is_silent);
    nodes.iter().zip(found).filter(|(_, is_silent)| *is_silent).map(|(node, _)| *node).collect()
}

fn at_once<T: Send>(nodes: &[NodeId], ask_one: impl Fn(NodeId) -> T + Sync) -> Vec<T> {
    let ask_one = &ask_one;
    let mut answers = Vec::new();
    for some in nodes.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|node| scope.spawn(move || ask_one(*node))).collect();
            answers.extend(asked.into_iter().map(|thread| thread.join().expect("questions do not panic")));
        });
    }
    answers
}
