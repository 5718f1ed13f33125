//! From the words of a command line to an exit code.
//!
//! The order of checks is part of the interface: names of command and subcommand, environment, options, then
//! the node list where it is needed, then positionals that are missing or too many, then the command itself. So a missing argument
//! with no daemon running is reported as an unreachable daemon.

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::audit;
use crate::command::{self, Action, Command, SubCommand};
use crate::context::{Context, Form, notice};
use crate::failure::{Failure, Outcome, exit};
use crate::getopt::{self, Parsed};
use crate::target::Target;

const HINT: &str = "Try 'dog --help' for more information.";

/// The environment variables that count.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub address: Option<OsString>,
    pub port: Option<OsString>,
    pub log: Option<OsString>,
    pub log_path: Option<OsString>,
    pub nbd: Option<OsString>,
}

impl Environment {
    pub fn from_process() -> Environment {
        let variable = std::env::var_os;
        Environment {
            address: variable("SHEEPDOG_DOG_ADDR"),
            port: variable("SHEEPDOG_DOG_PORT"),
            log: variable("SHEEPDOG_DOG_LOG"),
            log_path: variable("SHEEPDOG_DOG_LOG_PATH"),
            nbd: variable("SHEEPDOG_NBD"),
        }
    }
}

/// Runs one command line, program name included, and returns the exit code.
pub fn run(args: Vec<Vec<u8>>, environment: Environment) -> u8 {
    log_invocation(&args, &environment);
    let words: Vec<&[u8]> = args.iter().skip(1).map(Vec::as_slice).collect();
    let result = match words.as_slice() {
        [] | [b"help" | b"-h" | b"--help", ..] => print_to_stdout(&command::overview()),
        [b"run", ..] => run_command(&crate::run::COMMAND, &args[2..], &environment),
        [group, rest @ ..] => match command::group_list(&String::from_utf8_lossy(group)) {
            None => Err(unknown_command(group, HINT)),
            Some(list) => find_and_run(group, rest, list.trim_end(), &args, &environment),
        },
    };
    match result {
        Ok(()) => exit::SUCCESS,
        Err(failure) => {
            report(&failure);
            failure.code
        }
    }
}

fn find_and_run(
    group: &[u8],
    rest: &[&[u8]],
    list: &str,
    args: &[Vec<u8>],
    environment: &Environment,
) -> Outcome {
    let Some((name, _)) =
        rest.split_first().filter(|(name, _)| ![&b"help"[..], b"-h", b"--help"].contains(*name))
    else {
        return Err(Failure::bad_value(list));
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let Some(command) = command::find(&text(group), &text(name)) else {
        return Err(unknown_command(&[group, b" ", name].concat(), list));
    };
    run_command(command, &args[3..], environment)
}

fn run_command(command: &Command, args: &[Vec<u8>], environment: &Environment) -> Outcome {
    let outcome = prepare(command, args, environment)
        .and_then(|prepared| prepared.map_or(Ok(()), |(parsed, context)| execute(command, &parsed, context)));
    outcome.map_err(|failure| with_usage(failure, command))
}

/// What can be found wrong without a connection. `None` if help was all that was wanted.
fn prepare(
    command: &Command,
    args: &[Vec<u8>],
    environment: &Environment,
) -> Outcome<Option<(Parsed, Context)>> {
    let mut target = Target::default();
    if let Some(address) = &environment.address {
        target.set_address(address.as_bytes())?;
    }
    if let Some(port) = &environment.port {
        target.set_port(port.as_bytes())?;
    }
    let parsed = match command.runs_another() {
        true => getopt::parse_leading(command.options, args),
        false => getopt::parse(command.options, args),
    };
    for (option, value) in &parsed.options {
        match *option {
            "help" => return print_to_stdout(&command::usage(command)).map(|()| None),
            "address" => target.set_address(value)?,
            "port" => target.set_port(value)?,
            _ => {}
        }
    }
    if let Some(error) = &parsed.error {
        let hint = format!("Try 'dog {} --help' for more information.", command.title());
        return Err(Failure::bad_value(format!("{error}\n{hint}")));
    }
    (command.check)(&parsed)?;
    let context = open_context(target, environment.nbd.clone(), &parsed);
    Ok(Some((parsed, context)))
}

fn execute(command: &Command, parsed: &Parsed, mut context: Context) -> Outcome {
    let started = Instant::now();
    if command.needs_nodes && command.chosen(parsed).is_none_or(|sub| !sub.is_local) {
        fetch_nodes(&mut context)?;
    }
    let outcome = match &command.action {
        Action::Run(run) => {
            require(parsed, command.args_min, command.args_max).and_then(|()| run(&mut context, parsed))
        }
        Action::Sub(_) => choose(command, parsed)
            .and_then(|sub| require(parsed, sub.args_min + 1, sub.args_max + 1).map(|()| sub))
            .and_then(|sub| (sub.run)(&mut context, parsed)),
    };
    // Failed commands have results too, such as the header of a table.
    if parsed.has("time") {
        context.print(&format!("\nElapsed time: {:.3} seconds\n", started.elapsed().as_secs_f64()))?;
    }
    let flushed = context.out.flush();
    outcome?;
    Ok(flushed?)
}

fn fetch_nodes(context: &mut Context) -> Outcome {
    let fetched = context.connect().and_then(|mut sheep| Ok((sheep.nodes()?, sheep)));
    let (nodes, sheep) = fetched
        .map_err(|failure| Failure::system(format!("{}\nFailed to get node list", failure.message)))?;
    context.nodes = nodes;
    context.sheep = Some(sheep);
    Ok(())
}

/// A word that nobody looks at may be what the user wanted most: `delete disk snap` is no `delete -s snap disk`.
fn require(parsed: &Parsed, args_min: usize, args_max: usize) -> Outcome {
    match parsed.positionals.get(args_max) {
        Some(word) => {
            let word = String::from_utf8_lossy(word);
            Err(Failure::usage(format!("Unexpected argument '{word}'; nothing was done")))
        }
        None if parsed.positionals.len() < args_min => Err(Failure::usage("")),
        None => Ok(()),
    }
}

/// No word is a wrong command line (64); a wrong word is a refusal (1), as it always was.
fn choose<'a>(command: &'a Command, parsed: &Parsed) -> Outcome<&'a SubCommand> {
    if parsed.positionals.is_empty() {
        return Err(Failure::usage(""));
    }
    command.chosen(parsed).ok_or(Failure { code: exit::FAILURE, message: String::new(), with_usage: true })
}

fn open_context(target: Target, nbd: Option<OsString>, parsed: &Parsed) -> Context {
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let form = match (parsed.has("json"), parsed.has("raw")) {
        (true, _) => Form::Json,
        (false, true) => Form::Raw,
        (false, false) => Form::Human,
    };
    Context {
        out: if is_terminal { Box::new(stdout) } else { Box::new(BufWriter::with_capacity(1 << 16, stdout)) },
        input: Box::new(io::stdin().lock()),
        is_terminal,
        target,
        nbd,
        form,
        verbose: parsed.has("verbose"),
        nodes: Vec::new(),
        sheep: None,
    }
}

fn print_to_stdout(text: &str) -> Outcome {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

fn unknown_command(name: &[u8], hint: &str) -> Failure {
    Failure::bad_value(format!("Invalid command '{}'\n{hint}", String::from_utf8_lossy(name)))
}

fn with_usage(failure: Failure, command: &Command) -> Failure {
    if !failure.with_usage {
        return failure;
    }
    let usage = command::usage(command);
    let separator = if failure.message.is_empty() { "" } else { "\n" };
    Failure { message: format!("{}{separator}{}", failure.message, usage.trim_end()), ..failure }
}

fn report(failure: &Failure) {
    if !failure.message.is_empty() {
        notice(&failure.message);
    }
}

fn log_invocation(args: &[Vec<u8>], environment: &Environment) {
    if environment.log.is_none() {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let logged = match environment.log_path.clone() {
        Some(path) => audit::append_to_file(&PathBuf::from(OsString::from_vec(path.into_vec())), now, args),
        None => audit::send_to_syslog(args),
    };
    if let Err(error) = logged {
        notice(&format!("Cannot log this invocation: {}", crate::failure::reason(&error)));
    }
}
