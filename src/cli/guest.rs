//! The commands that run in the guest.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use lexopt::{Arg, Parser};

use crate::cli::log::log_to_stderr;
use crate::cli::{Command, Failure, no_more, text};
use crate::commands::program;
use crate::config::{self, Options, Told};
use crate::init;
use crate::power::{self, End};
use crate::server;
use crate::sys::{errno, process};

pub const SERVE: Command = Command {
    name: "serve",
    summary: "be the agent",
    help: concat!(
        "usage: lodger serve [--listen ADDR]... [--config FILE] [--google-config FILE]
                    [--request-timeout TIME] [--commands DIRECTORY] [--spare-console]
                    [--listen-default ADDR]...",
        if_metadata!(" [--metadata ADDR]"),
        if_openstack!(" [--no-injectfile] [--xen-report]"),
        "

  --listen ADDR   where to listen; may stand several times (default unix:/run/lodger.sock):
                  unix:PATH[,mode=0600][,group=NAME]   a unix socket
                  vsock:PORT[,cid=N]   a vsock port, for the host and this machine itself;
                               cid=N: for that CID alone, cid=any: for all
                  serial:PATH[,baud=N][,rtscts][,quiet]   many connections over a serial line that
                               a kernel may print on too, or over a virtio port
                  port:PATH    a virtio port, or a serial line that nothing else writes to
                  stdio:       serve stdin and stdout, and end with them
",
        if_openstack!(
            "                  xenstore:[PATH][,no-injectfile][,report]   requests of OpenStack's XenAPI hosts,
                               as nova-agent serves them (`lodger help openstack`)
"
        ),
        "                  ,proto=NAME behind an address pins the protocol, which else the first byte
                               says: agentproto, google",
        if_clear!(", clear, hyper-ctl, hyper-tty"),
        "
",
        if_clear!(
            "                  port:sh.hyper.channel.0,proto=hyper-ctl and
                  port:sh.hyper.channel.1,proto=hyper-tty   the two channels of hyperstart, also as
                               port:/dev/ttyS1 and unix:PATH; they must be pinned, as it is the
                               agent who speaks first
"
        ),
        "                  auto         every way into this guest that is there and that nobody uses:
                               unix:/run/lodger.sock, the virtio port org.lodger.0, vsock port
                               1074, hvc1, ttyS1 and the line of the console (auto,noconsole:
                               without that)
  --listen-default ADDR   where to listen when neither --listen nor a file says; may stand
                  several times
  --config FILE   read this file in place of /etc/lodger/lodger.conf, which need not be there
  --google-config FILE   listen as section [Unstable] of this file of Google's guest agent says
                  (command_monitor_enabled, command_pipe_path, command_pipe_mode,
                  command_pipe_group, command_request_timeout), beside the other addresses;
                  FILE.distro and FILE.template are read after it
  --request-timeout TIME, --commands DIRECTORY   win over the file
",
        if_metadata!(
            "  --metadata ADDR   do also the task of the metadata service at ADDR: IP, IP:PORT or unix:PATH
                  (`lodger help metadata`); wins over the file
"
        ),
        if_openstack!(
            "  --no-injectfile, --xen-report   mean ,no-injectfile and ,report behind every xenstore: address
"
        ),
        "  --spare-console auto, wherever it stands, means auto,noconsole

The file has lines KEY = VALUE; # begins a comment, at the start of a line or behind a blank:
  listen = ADDR           as above; may stand several times; --listen replaces all of them
  request-timeout = TIME  how long a JSON request may take to arrive: 500ms, 10s (default), 1m
  request-size = BYTES    its longest: 1 KiB to 64 MiB, a plain number or one with KiB or MiB
                          (default 1 MiB)
  connections = N         served at once: 1 to 4096 (default 256), two open files each
  commands-directory = DIRECTORY   programs that are commands (default /etc/lodger/commands.d)
  command-timeout = TIME  how long one of them may take (default 30s)
  log = LEVEL             as LODGER_LOG, which wins
",
        if_metadata!(
            "  metadata = ADDR         as --metadata
"
        ),
        "Google's file wins over this one in what it says of the time of a request, and where it is enabled
its address is one like any other: without a further one, the default is not listened on.

An executable DIRECTORY/NAME is the command NAME: the request on stdin, the response on stdout, its
name in LODGER_COMMAND; a status other than 0 is an error with the first line of stderr. It, the
directory and the optional NAME.conf (summary = LINE, timeout_seconds = N) must belong to root or to
the agent's user, and nobody else may write to them.

Every program that is run ends when its connection does (SIGHUP, then SIGKILL),",
        if_clear!(
            " but for those of
Clear Containers, where a shim has 10 minutes to come back and what has none goes on,"
        ),
        " and so does
everything at SIGTERM. Whoever can connect can do what this agent's user can.

Environment: LODGER_LOG is the lowest level of messages on stderr: off, error, warn (default),
info, debug, trace; the command log.level changes it. NOTIFY_SOCKET is told when all addresses
are open, as by sd_notify(3).
"
    ),
    run: serve,
};

fn serve(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("listen") => options.listen.push(text(parser.value()?)?),
            Arg::Long("listen-default") => options.listen_default.push(text(parser.value()?)?),
            Arg::Long("request-timeout") => options.request_timeout = Some(text(parser.value()?)?),
            Arg::Long("commands") => {
                // The agent may change its directory, but means the one of its start.
                let directory = parser.value()?;
                let absolute = std::path::absolute(&directory);
                let name = directory.to_string_lossy();
                let failed = |error: io::Error| Failure::new(format!("--commands {name}: {}", errno::describe(&error)));
                options.commands = Some(absolute.map_err(failed)?);
            }
            Arg::Long("config") => options.config = Some(parser.value()?.into()),
            Arg::Long("google-config") => options.google_config = Some(parser.value()?.into()),
            #[cfg(feature = "metadata")]
            Arg::Long("metadata") => options.metadata = Some(text(parser.value()?)?),
            #[cfg(feature = "openstack")]
            Arg::Long("no-injectfile") => options.without_injection = true,
            #[cfg(feature = "openstack")]
            Arg::Long("xen-report") => options.xen_reports = true,
            Arg::Long("spare-console") => options.spare_console = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let Told { config, log } = config::read(&options).map_err(|error| Failure::new(error.to_string()))?;
    log_to_stderr(log.unwrap_or("warn"));
    if let Some(named) = config.settings.commands.directory().filter(|path| *path != Path::new(program::DIRECTORY))
        && !named.is_dir()
    {
        // It may come later; or it is a slip of the pen.
        log::warn!("commands directory {}: is not there", named.display());
    }
    // Started through /proc/self/exe it would be called "exe".
    let _ = process::set_name(c"lodger");
    server::run(config).map_err(|error| Failure::new(error.to_string()))
}

pub const INIT: Command = Command {
    name: "init",
    summary: "be process 1",
    help: concat!(
        "usage: lodger init

What the program also does when it is started as /init or as process 1: mounts what a system
needs, starts the agent and keeps it alive, buries orphans, and ends the machine in an orderly
way on SIGTERM, SIGPWR, SIGUSR2 (power off), SIGINT or Ctrl-Alt-Del (reboot), SIGUSR1 (halt).

On the kernel's command line:
  lodger.listen=ADDR      where the agent listens; may stand several times
  lodger.log=LEVEL        the agent's log level
  lodger.hostname=NAME
  lodger.address=[IFACE:]ADDR/BITS      give this IPv4 address to the network interface IFACE, or
                          to the first Ethernet one, when it is there, and switch it on
",
        if_metadata!(
            "  lodger.metadata=ADDR    the agent does also the task of the metadata service there
"
        ),
        "  lodger.exec=\"PROGRAM ARGUMENT...\"   run this on the console, then power off; its exit
                          status is reported on the console and through isa-debug-exit
  vmm.notify_socket=vsock:CID:PORT      where the agent says READY=1 (also a credential)

The file /etc/lodger/modules lists kernel modules to load first, one path a line. The agent
reads its own /etc/lodger/lodger.conf (`lodger help serve`); lodger.listen= replaces the
addresses in that.
"
    ),
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
    power::request(end).map_err(|error: io::Error| Failure::new(errno::describe(&error)))?;
    Ok(ExitCode::SUCCESS)
}
