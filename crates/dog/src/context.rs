//! What a running command has at hand.

use std::ffi::OsString;
use std::io::{BufRead, Write};

use proto::NodeId;
use proto::client::NodeInfo;

use crate::failure::Outcome;
use crate::sheep::Sheep;
use crate::target::Target;
use crate::visible::visible_lines;

/// The ends of one `dog` process, and the options that most commands share.
///
/// Made once the command line is understood; `nodes` is filled before the command runs if it asks for that.
pub struct Context {
    /// Results only. Buffered unless a person watches, so that notices come first in merged captures.
    pub out: Box<dyn Write>,
    pub input: Box<dyn BufRead>,
    /// Stdout is a terminal: progress bars are welcome.
    pub is_terminal: bool,
    pub target: Target,
    /// Where a sheep serves NBD, as the environment says.
    pub nbd: Option<OsString>,
    pub form: Form,
    pub verbose: bool,
    pub nodes: Vec<NodeInfo>,
    /// A connection that an earlier step has made.
    pub sheep: Option<Sheep>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Human,
    Raw,
    Json,
}

impl Context {
    /// A connection to the sheep that was chosen, made now unless there is one.
    pub fn connect(&mut self) -> Outcome<Sheep> {
        match self.sheep.take() {
            Some(sheep) => Ok(sheep),
            None => Sheep::connect(&self.target),
        }
    }

    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    pub fn print(&mut self, text: &str) -> Outcome {
        Ok(self.out.write_all(text.as_bytes())?)
    }

    pub fn is_raw(&self) -> bool {
        self.form == Form::Raw
    }
}

/// The end of a command whose question was not answered with yes: exit code 0, as scripts know it.
pub fn declined() -> Outcome {
    notice("Nothing was changed.");
    Ok(())
}

/// A line for stderr: a notice, or an error that does not end the command. What words of others it holds does nothing to a terminal.
pub fn notice(text: &str) {
    let line = [&visible_lines(text.as_bytes())[..], b"\n"].concat();
    // There is nowhere to report to that stderr is gone.
    let _ = std::io::stderr().write_all(&line);
}
