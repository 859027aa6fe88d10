//! `vm`: a program in a guest of its own.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lexopt::{Arg, Parser};

use crate::cli::exec::{self, Request};
use crate::cli::image::Content;
#[cfg(feature = "metadata")]
use crate::cli::vm_metadata::{self, Task, Wishes};
use crate::cli::{Command, Failure, number, seconds, text};
use crate::mkinitramfs::Image;
use crate::sys::signal;
use crate::vm::Error;
use crate::vm::kernel::{self, Accelerator};
use crate::vm::machine::Machine;
#[cfg(feature = "metadata")]
use crate::vm::network;

/// How long a guest may take until its agent answers, when nobody says: ten times what it takes under TCG on a slow machine.
const WAIT: Duration = Duration::from_secs(30);

pub const VM: Command = Command {
    name: "vm",
    summary: "run a program in a guest of its own, under QEMU",
    help: concat!(
        "usage: lodger vm [OPTION...] -- PROGRAM [ARGUMENT...]

Builds an initramfs, boots a kernel on it with this program as process 1, runs PROGRAM in it as
`lodger exec` does, and powers the guest off.

What is in the guest:
  --kernel FILE        the kernel; else LODGER_KERNEL, else the one that
                       initramfs/fetch-kernel.sh has fetched, else the newest in /boot
  --modules DIR        its modules (default: lib/modules/RELEASE beside its boot folder)
  --module NAME        one of them, with the modules it depends on, loaded before the agent starts
  --add HOST[:GUEST]   a file or tree, at the same path in the guest or at GUEST
  --bin PROGRAM        a program of this machine, with the libraries it needs
  --busybox            this machine's busybox, with all its applets
  --memory MIB         (default 256)
  --cpus N             (default 1)
  --single-serial      one serial line is everything: the console, and the way to the agent
  --append WORDS       more words for the kernel's command line

How PROGRAM runs:
  -C DIR, -e K=V, -t, -n, --record F   as for `lodger exec`
  --timeout S          end it all after S seconds, with exit status 124
  --console FILE       write the guest's console there
  --wait S             how long the guest may take until its agent answers (default 30)
  --keep               leave the guest running, and print how to reach it; PROGRAM may be left out
  -q                   do not say which kernel and accelerator are used
",
        if_metadata!(
            "
PROGRAM as the task of a metadata service (`lodger help metadata`):
  --metadata           the guest has a network with that service and nothing else (the modules
                       virtio_net and virtio_pci go into it by themselves), asks for the task
                       and runs it on a terminal without keyboard; what that shows is the log,
                       and is printed here; the guest is ended when it has reported the result
  -e K=V               a variable of the task's environment
  --log F              write the log to the file F, or to stdout (-, the default)
  --control unix:PATH  carry out `lodger metadata get`, ls, shell and kill from there meanwhile
  --linger S           stay S seconds behind the result for them (default 0)
  --wait S             how long the guest may take until it asks for the task (default 30)
  An interrupt kills the task, which has failed then; a second one does not wait for the guest.
  -C, -t, -n, --record, --keep and --single-serial cannot stand with it.
"
        ),
        "
The processor is KVM's where that really works, else QEMU's own (TCG). Environment: LODGER_QEMU
is the QEMU to run (default qemu-system-x86_64).

Exit status: PROGRAM's own, 128 + signal, 127 or 126 as for `lodger exec`; 125 when there is no
guest, or it panicked or powered off by itself: the console's last lines tell then.
",
        if_metadata!(
            "With --metadata 0 or 1 by the task's result in place of PROGRAM's own.
"
        )
    ),
    run: vm,
};

/// What the options ask for.
struct Options {
    content: Content,
    request: Request,
    kernel: Option<PathBuf>,
    modules: Option<PathBuf>,
    memory_mib: u32,
    cpus: u32,
    append: String,
    console: Option<PathBuf>,
    timeout: Option<Duration>,
    single_serial: bool,
    wait: Duration,
    keep: bool,
    quiet: bool,
    #[cfg(feature = "metadata")]
    metadata: Wishes,
}

fn read(mut parser: Parser) -> Result<Options, Failure> {
    let mut options = Options {
        content: Content::default(),
        request: Request::default(),
        kernel: None,
        modules: None,
        memory_mib: 256,
        cpus: 1,
        append: String::new(),
        console: None,
        timeout: None,
        single_serial: false,
        wait: WAIT,
        keep: false,
        quiet: false,
        #[cfg(feature = "metadata")]
        metadata: Wishes::default(),
    };
    let mut words = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("kernel") => options.kernel = Some(PathBuf::from(parser.value()?)),
            Arg::Long("modules") => options.modules = Some(PathBuf::from(parser.value()?)),
            Arg::Long("module") => options.content.modules.push(text(parser.value()?)?),
            Arg::Long("add") => options.content.added.push(parser.value()?),
            Arg::Long("bin") => options.content.programs.push(parser.value()?),
            Arg::Long("busybox") => options.content.busybox = true,
            Arg::Long("memory") => options.memory_mib = number(parser.value()?, "--memory")?,
            Arg::Long("cpus") => options.cpus = number(parser.value()?, "--cpus")?,
            Arg::Long("append") => options.append = text(parser.value()?)?,
            Arg::Long("console") => options.console = Some(PathBuf::from(parser.value()?)),
            Arg::Long("timeout") => options.timeout = Some(seconds(parser.value()?, "--timeout")?),
            Arg::Long("wait") => options.wait = seconds(parser.value()?, "--wait")?,
            Arg::Long("single-serial") => options.single_serial = true,
            Arg::Long("keep") => options.keep = true,
            Arg::Short('q') => options.quiet = true,
            Arg::Short('C') => options.request.set_directory(parser.value()?),
            Arg::Short('e') => options.request.add_variable(parser.value()?)?,
            Arg::Short('t') => options.request.terminal = true,
            Arg::Short('n') => options.request.no_input = true,
            Arg::Long("record") => options.request.record = Some(PathBuf::from(parser.value()?)),
            #[cfg(feature = "metadata")]
            Arg::Long(name) if Wishes::has(name) => options.metadata.take(name.to_owned(), &mut parser)?,
            Arg::Value(first) => {
                words.push(first);
                words.extend(parser.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if words.is_empty() && !options.keep {
        return Err(Failure::new("a program is missing; see `lodger help vm`"));
    }
    if options.timeout == Some(Duration::ZERO) {
        return Err(Failure::new("--timeout 0: no guest starts in no time"));
    }
    options.request.set_words(words);
    Ok(options)
}

fn vm(parser: Parser) -> Result<ExitCode, Failure> {
    #[cfg_attr(not(feature = "metadata"), expect(unused_mut))]
    let mut options = read(parser)?;
    #[cfg(feature = "metadata")]
    let task = options.take_task()?;
    let machine = Machine {
        kernel: kernel::find(options.kernel.as_deref(), options.modules.as_deref())?,
        accelerator: kernel::accelerator(),
        memory_mib: options.memory_mib,
        cpus: options.cpus,
        console: options.console.clone(),
        single_serial: options.single_serial,
        append: options.append.clone(),
        #[cfg(feature = "metadata")]
        relay: task.as_ref().map(|_| vm_metadata::relay()).transpose()?,
        keep: options.keep,
    };
    if !options.quiet {
        let name = if machine.accelerator == Accelerator::Kvm { "KVM" } else { "TCG" };
        say(&format!("kernel {}, {name}", machine.kernel.image.display()));
    }
    let mut image = Image::new();
    options.content.put_into(&mut image)?;
    options.content.put_modules_into(&mut image, machine.kernel.modules.as_deref())?;
    let signals = exec::catch_signals()?;
    #[cfg(feature = "metadata")]
    if let Some(task) = task {
        return vm_metadata::run(&machine, image, task, &signals);
    }
    run(&machine, image, options, &signals)
}

#[cfg(feature = "metadata")]
impl Options {
    /// The task of a guest that shall have one, with the modules for that.
    fn take_task(&mut self) -> Result<Option<Task>, Failure> {
        if !self.metadata.is_wanted()? {
            return Ok(None);
        }
        vm_metadata::refuse(&[(self.keep, "--keep"), (self.single_serial, "--single-serial")])?;
        self.content.modules.extend(network::MODULES.map(str::to_owned));
        let (wishes, request) = (std::mem::take(&mut self.metadata), std::mem::take(&mut self.request));
        wishes.into_task(request, self.wait, self.timeout).map(Some)
    }
}

fn run(machine: &Machine, image: Image, options: Options, signals: &OwnedFd) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let guest = machine.start(image)?;
    let patience = options.timeout.map_or(options.wait, |timeout| timeout.min(options.wait));
    let mut connection = match guest.connect(patience, signals) {
        Err(error @ Error::Silent { .. }) if options.timeout == Some(patience) => {
            return Err(Failure::with_code(exec::TIMED_OUT, error.to_string()));
        }
        connection => connection?,
    };
    let mut request = options.request;
    request.deadline = options.timeout.map(|timeout| start + timeout);
    let mut result = Ok(ExitCode::SUCCESS);
    if !request.exec.path.is_empty() {
        let outcome = exec::run_on(&mut connection, &guest.address(), request, signals)?;
        // A connection that broke off may have done so because the guest did.
        result = match outcome {
            Err(error) => match guest.explain(error) {
                Error::Client(error) => Err(Failure::from(error)),
                error => return Err(error.into()),
            },
            Ok(outcome) => exec::finish(outcome),
        };
    }
    if options.keep {
        say(&format!("the guest stays, as process {}; reach it by --to {}", guest.pid(), guest.address()));
        say(&format!("end it by: lodger exec --to {} /bin/lodger poweroff", guest.address()));
        connection.close();
        guest.keep();
    } else {
        guest.power_off(connection, signals);
    }
    result
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "lodger vm: {text}");
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Client(error) => error.into(),
            Error::Interrupted(number) => {
                Failure::with_code(128 + number as u8, format!("ended by {}", signal::name(number)))
            }
            error => Failure::new(error.to_string()),
        }
    }
}
