//! `dog cluster format`: makes a cluster of the sheep that are up, or wipes it and makes it anew.
//!
//! ```text
//! using backend plain store
//! ```
//!
//! All data is lost, so a cluster with VDIs is formatted only after a question; `-f` answers it.

use std::time::{SystemTime, UNIX_EPOCH};

use proto::CopyPolicy;
use proto::cluster::RepairChange;
use proto::inode::SHIFT_DEFAULT;
use proto::sd::cluster_flag;
use proto::sd::header::ClusterRequest;

use crate::command::{Action, Command, option};
use crate::context::{Context, declined, notice};
use crate::duration;
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::Parsed;
use crate::redundancy;
use crate::sheep::Sheep;
use crate::terminal::confirm;
use crate::vdi::create::{parse_shift, zone_count};

pub const COMMAND: Command = Command {
    group: "cluster",
    name: "format",
    summary: "create a new cluster, wiping the old one",
    args: "",
    args_min: 0,
    args_max: 0,
    options: &[
        option::STORE,
        option::COPIES,
        option::LOCK,
        option::STRICT,
        option::ADDRESS,
        option::PORT,
        option::HELP,
        option::SHIFT,
        option::TIME,
        option::FIXED_VNODES,
        option::RECYCLE,
        option::FORCE,
        option::AVOID_FULL,
        option::OUT_TIME,
    ],
    needs_nodes: true,
    check: |parsed| Options::parse(parsed).map(drop),
    action: Action::Run(run),
    notes: "",
};

const STORE_DEFAULT: &str = "plain";
const COPIES_DEFAULT: u8 = 3;

#[derive(Debug, PartialEq, Eq)]
struct Options {
    store: String,
    policy: CopyPolicy,
    block_size_shift: u8,
    flags: u16,
    force: bool,
    /// Seconds, 0 for never; `None`: the default.
    out_time_s: Option<u32>,
}

impl Options {
    fn parse(parsed: &Parsed) -> Outcome<Options> {
        if parsed.has("fixedvnodes") {
            // The original's words: programs compare them. Every sheep here balances by capacity.
            return Err(Failure::refused(
                "Can not apply the option of '-V', because there are vnode strategy of sheep is auto in the cluster",
            ));
        }
        for (option, what) in
            [("recyclevid", "Recycling of VDI ids (-R)"), ("avoid-diskfull", "Avoiding full disks (-F)")]
        {
            if parsed.has(option) {
                return Err(Failure::refused(format!("{what} is not supported yet")));
            }
        }
        let flag = |option, bit| if parsed.has(option) { bit } else { 0 };
        Ok(Options {
            store: parsed.text("store").unwrap_or_else(|| STORE_DEFAULT.to_string()),
            policy: match parsed.value("copies") {
                Some(text) => redundancy::parse_replicated(text)?,
                None => CopyPolicy::Replicated { copies: COPIES_DEFAULT },
            },
            block_size_shift: parsed.value("block_size_shift").map_or(Ok(SHIFT_DEFAULT), parse_shift)?,
            flags: cluster_flag::AUTO_VNODES
                | flag("lock", cluster_flag::USE_LOCK)
                | flag("strict", cluster_flag::STRICT),
            force: parsed.has("force"),
            out_time_s: parsed.value("out-time").map(duration::parse_out_time).transpose()?,
        })
    }
}

fn run(context: &mut Context, parsed: &Parsed) -> Outcome {
    let options = Options::parse(parsed)?;
    let mut sheep = context.connect()?;
    let stores = sheep.stores()?;
    let is_known = stores.contains(&options.store);
    // What cannot be done is not asked about.
    if is_known && !is_confirmed(context, &mut sheep, &options)? {
        return declined();
    }
    context.print(&format!("using backend {} store\n", options.store))?;
    if !is_known {
        notice("Format failed: Targeted backend store is not found");
        context.print(&render_stores(&stores))?;
        return Err(Failure::silent(exit::SYSTEM));
    }
    let request = ClusterRequest {
        ctime: now(),
        copies: options.policy.width(),
        copy_policy: options.policy.wire(),
        flags: options.flags,
        block_size_shift: options.block_size_shift,
        ..ClusterRequest::default()
    };
    sheep
        .format(&options.store, request)
        .map_err(|error| error.or_refused(|reason| format!("Format failed: {reason}")))?;
    if options.out_time_s.is_none() {
        return Ok(());
    }
    // A format takes the default.
    let change = RepairChange { out_time_s: options.out_time_s, ..RepairChange::default() };
    sheep.set_repair(change).map_err(|error| {
        error.or_refused(|reason| {
            format!(
                "The cluster is formatted, but its out-time was not set: {reason}; see dog cluster out-time"
            )
        })
    })
}

/// Asks before data is lost, and before a cluster is made that cannot keep its promise.
fn is_confirmed(context: &mut Context, sheep: &mut Sheep, options: &Options) -> Outcome<bool> {
    let has_vdis = match sheep.vdis() {
        Err(error) if error.is_wait_for_format() => false,
        vdis => !vdis?.is_empty(),
    };
    let sure = "Are you sure you want to continue?";
    if has_vdis && !options.force {
        let question = format!("Caution! The cluster is not empty. {sure}");
        if !confirm(&question, &mut context.out, &mut context.input)? {
            return Ok(false);
        }
    }
    let zones = zone_count(&context.nodes);
    let copies = usize::from(options.policy.width());
    if copies > zones {
        let question =
            format!("Number of copies ({copies}) is larger than number of zones ({zones}).\n{sure}");
        return confirm(&question, &mut context.out, &mut context.input);
    }
    Ok(true)
}

/// `seconds << 32 | nanoseconds`: what tells this cluster from every other.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() << 32 | u64::from(since.subsec_nanos())
}

fn render_stores(stores: &[String]) -> String {
    let names: String = stores.iter().map(|store| format!("{store} ")).collect();
    format!("Available stores:\n{}\n{names}\n", "-".repeat(39))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&'static str, &str)]) -> Outcome<Options> {
        let options = options.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect();
        Options::parse(&Parsed { options, ..Parsed::default() })
    }

    #[test]
    fn defaults_are_three_copies_of_4_mib_objects() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.store, "plain");
        assert_eq!(options.policy, CopyPolicy::Replicated { copies: 3 });
        assert_eq!(options.block_size_shift, 22);
        assert_eq!(options.flags, 0x04);
        assert_eq!(parse(&[("lock", ""), ("strict", "")]).unwrap().flags, 0x0d);
    }

    #[test]
    fn what_no_sheep_can_do_is_refused() {
        for options in [
            &[("fixedvnodes", "")][..],
            &[("recyclevid", "")],
            &[("avoid-diskfull", "")],
            &[("copies", "4:2")],
            &[("copies", "x")],
            &[("block_size_shift", "19")],
        ] {
            assert_eq!(parse(options).unwrap_err().code, 1, "{options:?}");
        }
    }

    #[test]
    fn stores_are_listed_as_in_the_original() {
        assert_eq!(
            render_stores(&["tree".into(), "plain".into()]),
            "Available stores:\n---------------------------------------\ntree plain \n"
        );
    }
}
