//! The commands that run in the guest.

use std::io::{self, Write};
use std::process::ExitCode;

use lexopt::{Arg, Parser};

use crate::cli::{Command, Failure, no_more, text};
use crate::commands::table::Table;
use crate::init::{self, End};
use crate::proto::settings::Settings;
use crate::server::{self, Config};
use crate::sys::{errno, process};
use crate::transport::{self, Addr, auto};

pub const SERVE: Command = Command {
    name: "serve",
    summary: "be the agent",
    help: "usage: lodger serve [--listen ADDR]...

  --listen ADDR   where to listen; may stand several times (default unix:/run/lodger.sock):
                  unix:PATH[,mode=0600][,group=NAME]   a unix socket
                  vsock:PORT[,cid=N]   a vsock port, for the host and this machine itself;
                               cid=N: for that CID alone, cid=any: for all
                  serial:PATH[,baud=N][,rtscts][,quiet]   many connections over a serial line that
                               a kernel may print on too, or over a virtio port
                  port:PATH    a virtio port, or a serial line that nothing else writes to
                  stdio:       serve stdin and stdout, and end with them
                  ,proto=NAME behind an address pins the protocol
                  auto         every way into this guest that is there and that nobody uses:
                               unix:/run/lodger.sock, the virtio port org.lodger.0, vsock port
                               1074, hvc1, ttyS1 and the line of the console (auto,noconsole:
                               without that)

Every program that is run ends when its connection does (SIGHUP, then SIGKILL), and so does
everything at SIGTERM. Whoever can connect can do what this agent's user can.

Environment: LODGER_LOG is the lowest level of messages on stderr: error, warn (default), info,
debug, trace. NOTIFY_SOCKET is told when all addresses are open, as by sd_notify(3).
",
    run: serve,
};

fn serve(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut addrs, mut console) = (Vec::new(), None);
    let parse = |text: &str| text.parse::<Addr>().map_err(|error| Failure::new(format!("{error}")));
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("listen") => {
                let text = text(parser.value()?)?;
                match auto::meant_by(&text) {
                    Some(meant) => console = Some(meant),
                    None => addrs.push(parse(&text)?),
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if addrs.is_empty() && console.is_none() {
        addrs.push(parse(transport::DEFAULT)?);
    }
    log_to_stderr();
    // Started through /proc/self/exe it would be called "exe".
    let _ = process::set_name(c"lodger");
    server::run(Config { addrs, auto: console, ..Config::with(Settings::with(Table::of_agent())) })
        .map_err(|error| Failure::new(error.to_string()))
}

/// Sends log messages to stderr, as lines that say whose they are. That stderr is gone must not end the agent.
fn log_to_stderr() {
    let level = std::env::var("LODGER_LOG").unwrap_or_else(|_| "warn".to_owned());
    env_logger::Builder::new()
        .parse_filters(&level)
        .format(|out, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(out, "lodger {level}: {}", record.args())
        })
        .init();
}

pub const INIT: Command = Command {
    name: "init",
    summary: "be process 1",
    help: "usage: lodger init

What the program also does when it is started as /init or as process 1: mounts what a system
needs, starts the agent and keeps it alive, buries orphans, and ends the machine in an orderly
way on SIGTERM, SIGPWR, SIGUSR2 (power off), SIGINT or Ctrl-Alt-Del (reboot), SIGUSR1 (halt).

On the kernel's command line:
  lodger.listen=ADDR      where the agent listens; may stand several times
  lodger.log=LEVEL        the agent's log level
  lodger.hostname=NAME
  lodger.exec=\"PROGRAM ARGUMENT...\"   run this on the console, then power off; its exit
                          status is reported on the console and through isa-debug-exit
  vmm.notify_socket=vsock:CID:PORT      where the agent says READY=1 (also a credential)

The file /etc/lodger/modules lists kernel modules to load first, one path a line.
",
    run: init,
};

fn init(mut parser: Parser) -> Result<ExitCode, Failure> {
    no_more(&mut parser)?;
    Ok(init::run())
}

pub const POWEROFF: Command = Command {
    name: "poweroff",
    summary: "in a guest: power it off in an orderly way",
    help: "usage: lodger poweroff\n",
    run: |parser| request(parser, End::PowerOff),
};

pub const REBOOT: Command = Command {
    name: "reboot",
    summary: "in a guest: restart it in an orderly way",
    help: "usage: lodger reboot\n",
    run: |parser| request(parser, End::Reboot),
};

pub const HALT: Command = Command {
    name: "halt",
    summary: "in a guest: stop it in an orderly way",
    help: "usage: lodger halt\n",
    run: |parser| request(parser, End::Halt),
};

fn request(mut parser: Parser, end: End) -> Result<ExitCode, Failure> {
    no_more(&mut parser)?;
    init::request(end).map_err(|error: io::Error| Failure::new(errno::describe(&error)))?;
    Ok(ExitCode::SUCCESS)
}
