//! What a guest is made of, in QEMU's words.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::vm::kernel::{Accelerator, Kernel};
#[cfg(feature = "metadata")]
use crate::vm::network;

/// What a guest is made of.
#[derive(Debug)]
pub struct Machine {
    pub kernel: Kernel,
    pub accelerator: Accelerator,
    pub memory_mib: u32,
    pub cpus: u32,
    /// Where the console goes; `None`: into a file that goes with the guest.
    pub console: Option<PathBuf>,
    /// The guest's only line is its console, and the agent is on it too.
    pub single_serial: bool,
    /// More words for the kernel's command line.
    pub append: String,
    /// This program, for a guest whose network has a service of ours and nothing else.
    #[cfg(feature = "metadata")]
    pub relay: Option<PathBuf>,
    /// The guest may outlive this process.
    pub keep: bool,
}

/// The line on which the agent is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    VirtioPort,
    SecondUart,
    /// The console's.
    OnlyUart,
}

impl Line {
    /// Its socket in the guest's folder, and QEMU's name of it.
    pub fn socket(self) -> &'static str {
        match self {
            Line::VirtioPort => "port",
            Line::SecondUart | Line::OnlyUart => "line",
        }
    }

    /// Its device in the guest.
    pub fn device(self) -> &'static str {
        match self {
            Line::VirtioPort => "/dev/vport0p1",
            Line::SecondUart => "/dev/ttyS1",
            Line::OnlyUart => "/dev/ttyS0",
        }
    }
}

impl Machine {
    /// QEMU's arguments. `folder`: where its sockets will be.
    pub fn arguments(&self, folder: &Path, archive: &Path, console: &Path, line: Line) -> Vec<Vec<u8>> {
        let (accelerator, processor) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg", "max"),
        };
        let (device, append) = (line.device(), &self.append);
        #[cfg(feature = "metadata")]
        let append = &match self.relay {
            Some(_) => format!("{} {append}", network::words()),
            None => append.clone(),
        };
        let words = format!("console=ttyS0 quiet panic=-1 cryptomgr.notests lodger.listen=serial:{device} {append}");
        let socket = |name: &str| with_path(&format!("socket,id={name},server=on,wait=off"), &folder.join(name));
        let text = |text: &str| text.as_bytes().to_vec();
        let mut arguments: Vec<Vec<u8>> = Vec::new();
        let mut add = |words: &str| arguments.extend(words.split(' ').map(text));
        add("-M q35 -nodefaults -no-user-config -display none -no-reboot -action panic=exit-failure");
        add("-device pvpanic -device isa-debug-exit,iobase=0xf4,iosize=0x04");
        add(&format!("-accel {accelerator} -cpu {processor} -m {} -smp {}", self.memory_mib, self.cpus));
        let mut chardevs = vec![socket(line.socket())];
        if line != Line::OnlyUart {
            add("-serial chardev:console");
            chardevs.push(with_path("file,id=console,append=on", console));
        }
        match line {
            Line::VirtioPort => {
                add("-device virtio-serial-pci -device virtserialport,chardev=port,name=org.lodger.0");
            }
            Line::SecondUart | Line::OnlyUart => add("-serial chardev:line"),
        }
        for chardev in chardevs {
            arguments.extend([text("-chardev"), chardev]);
        }
        for (option, value) in [("-kernel", self.kernel.image.as_path()), ("-initrd", archive)] {
            arguments.extend([text(option), value.as_os_str().as_bytes().to_vec()]);
        }
        arguments.extend([text("-append"), words.into_bytes()]);
        #[cfg(feature = "metadata")]
        if let Some(relay) = &self.relay {
            arguments.extend(network::arguments(relay, &folder.join(network::SOCKET)));
        }
        arguments
    }
}

/// A chardev option with a path, in which a comma is doubled.
fn with_path(option: &str, path: &Path) -> Vec<u8> {
    let path = path.as_os_str().as_bytes().split(|byte| *byte == b',').collect::<Vec<_>>().join(&b",,"[..]);
    [option.as_bytes(), b",path=", &path].concat()
}
