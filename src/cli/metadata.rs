//! The metadata service: both of its sides.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use lexopt::{Arg, Parser};

use crate::cli::log::log_to_stderr;
use crate::cli::metadata_commands::{kill, list, shell};
use crate::cli::metadata_get::get;
use crate::cli::metadata_host::serve;
use crate::cli::metadata_relay::relay;
use crate::cli::{Command, Failure, OUR_ERROR, explain, seconds, text};
use crate::proto::metadata::{self, Config, Ended, HOST};
use crate::sys::{errno, fd, process, signal};

pub const METADATA: Command = Command {
    name: "metadata",
    summary: "give a guest one task over HTTP, or be that guest",
    help: "usage: lodger metadata run [--host ADDR] [--entrypoint WORD]... [-e NAME=VALUE]...
                    [--shell WORD]... [--user USER[:GROUP]] [--workdir DIRECTORY]
                    [--fail-on-lost-log] [--exit-with-task SECONDS]
       lodger metadata serve --listen ADDR [OPTION...] -- COMMAND [ARGUMENT...]
       lodger metadata get [--control unix:PATH] REMOTE LOCAL|-
       lodger metadata ls [--control unix:PATH] FOLDER
       lodger metadata shell [--control unix:PATH] [-t] [-- COMMAND [ARGUMENT...]]
       lodger metadata kill [--control unix:PATH]
       lodger metadata relay unix:PATH

run: be the guest tools of a metadata service, as those of taskcluster-worker's QEMU engine: do
the one task that the host has, with its log and its result, and all the while send the files,
list the folders and start the shells that the host asks for. Ends only with SIGTERM or SIGINT,
unless there is --exit-with-task, and then ends what it has started. LODGER_LOG=info in the
environment of run and serve makes them tell what they do.
  --host ADDR           IP, IP:PORT or unix:PATH of the service (default 169.254.169.254:80)
  --entrypoint WORD     put this in front of the task's command; may stand several times
  -e NAME=VALUE         put this into the environment of the task and of shells; the task's own wins
  --shell WORD          the shell of who names none (default sh); further ones are its arguments.
                        A task without a command is /bin/bash, and this where there is none
  --user USER[:GROUP]   run programs as this user
  --workdir DIRECTORY   run programs here (default the user's home)
  --fail-on-lost-log    a task whose log did not reach the host whole has failed
  --exit-with-task S    end so long after the result was accepted: 0 success, 1 failure, 125 when
                        the host did not accept it

An agent does what run does beside its other work: `lodger serve --metadata ADDR`, metadata = ADDR
in its file, lodger.metadata=ADDR on the kernel's command line.

serve gives one task to one guest that speaks taskcluster-worker's metadata protocol (`lodger
metadata run` does), and prints its log as it comes.

  --listen A   IP:PORT, or unix:PATH for QEMU's guestfwd
  --env K=V    a variable of the task's environment, as is -e K=V; may be repeated
  --log F      write the log to the file F, or to stdout (-, the default)
  --from NET   accept only guests with an address in IP/BITS; may be repeated. Others get 403.
               Not with unix:, whose guests have none
  --control A  unix:PATH: carry out commands from there while the task runs
  --linger S   stay S seconds behind the result for commands (default 0). Those that are being
               carried out, and shells that are open, are waited for in any case.

Exit status of serve: 0 or 1 by the task's result, 125 for errors of lodger itself, when a part of
the log could not be written, and when the result is that of another task, as no guest has asked
for this one. A log whose reader has gone kills the task; behind another error it goes on, and the
rest of its log is dropped. SIGINT, SIGTERM or SIGHUP kills the task and makes it 1; a
second one does not wait for the guest. Behind the result one ends the lingering, and it stays.

get, ls, shell and kill are such commands; the socket is that of --control, or of the environment
variable LODGER_METADATA_CONTROL. get fetches a file, ls lists the files below a folder, and kill
ends the task's command. A file that get writes takes the place of LOCAL when it is there whole,
with the mode of what was there; a pipe or device, or stdout (-), gets each byte as it comes, so
that a file that breaks off is not asked for again. Their exit status is 0, or 125 when it was not
done; get that was interrupted leaves nothing in a file's place, with 128 + signal.

shell runs COMMAND or the guest's shell, on a terminal with -t, where the end of the input ends
the program after 5 s. Its exit status is 0 or 1 as the protocol has no other, 130 when it was
interrupted, and 125 when it could not be opened, was lost, or had output that could not be written.

relay joins stdin and stdout to the socket of serve, for one connection of QEMU's guestfwd
(-netdev user,...,guestfwd=tcp:169.254.169.254:80-cmd:...); `lodger vm --metadata` does all of it.
",
    run: dispatch,
};

/// A subcommand's name, and what it does.
type Subcommand = (&'static str, fn(Parser) -> Result<ExitCode, Failure>);

const SUBCOMMANDS: [Subcommand; 7] =
    [("run", run), ("serve", serve), ("get", get), ("ls", list), ("shell", shell), ("kill", kill), ("relay", relay)];

fn dispatch(mut parser: Parser) -> Result<ExitCode, Failure> {
    let names = || SUBCOMMANDS.map(|(name, _)| name).join(", ");
    let Some(argument) = parser.next()? else { return Err(Failure::new(format!("one of {} is wanted", names()))) };
    let Arg::Value(name) = argument else { return Err(argument.unexpected().into()) };
    match SUBCOMMANDS.iter().find(|(known, _)| name == *known) {
        Some((_, run)) => {
            let rest: Vec<OsString> = parser.raw_args()?.collect();
            // Only in front of the first word that is no option: behind it they may be a program's own.
            let mut ours = rest.iter().take_while(|word| word.as_bytes().starts_with(b"-") && *word != "--");
            if ours.any(|word| word == "--help" || word == "-h") {
                return explain(&METADATA);
            }
            run(Parser::from_args(rest))
        }
        None => Err(Failure::new(format!("{}: there are only {}", name.to_string_lossy(), names()))),
    }
}

fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut config = at(HOST)?;
    let mut shell = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("host") => config.host = at(&text(parser.value()?)?)?.host,
            Arg::Long("entrypoint") => config.entrypoint.push(text(parser.value()?)?),
            Arg::Short('e') | Arg::Long("env") => config.env.push(pair(text(parser.value()?)?)?),
            Arg::Long("shell") => shell.push(text(parser.value()?)?),
            Arg::Long("user") => config.user = Some(text(parser.value()?)?),
            Arg::Long("workdir") => config.workdir = Some(parser.value()?.into()),
            Arg::Long("fail-on-lost-log") => config.fail_on_lost_log = true,
            Arg::Long("exit-with-task") => config.exit_with_task = Some(seconds(parser.value()?, "--exit-with-task")?),
            other => return Err(other.unexpected().into()),
        }
    }
    if !shell.is_empty() {
        config.shell = shell;
    }
    log_to_stderr("warn");
    let _ = fd::close_on_exec_from_3();
    let _ = process::raise_descriptor_limit();
    let stop = signal::into_pipe(&[signal::SIGTERM, signal::SIGINT]);
    let ended = stop.and_then(|stop| metadata::run(&config, stop.as_fd()));
    Ok(match ended.map_err(|error| Failure::new(errno::describe(&error)))? {
        Ended::Stopped | Ended::Task { success: true } => ExitCode::SUCCESS,
        Ended::Task { success: false } => ExitCode::FAILURE,
        Ended::Unreported => ExitCode::from(OUR_ERROR),
    })
}

fn at(host: &str) -> Result<Config, Failure> {
    Config::at(host).map_err(|why| Failure::new(format!("--host {why}")))
}

fn pair(entry: String) -> Result<String, Failure> {
    match entry.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(entry),
        _ => Err(Failure::new(format!("-e {entry}: NAME=VALUE is wanted"))),
    }
}
