//! Extra descriptors: socket pairs between the program and the client.

use lodger::wire::exec::Exec;
use lodger::wire::frame::Frame;

use crate::support::{Agent, Finished, data, exec, run, shell};

fn with(exec: Exec, fds: &[u32]) -> Exec {
    Exec { fds: fds.to_vec(), ..exec }
}

#[test]
fn an_extra_descriptor_carries_bytes_both_ways_and_closes_by_halves() {
    let agent = Agent::start();
    for hello in [false, true] {
        let mut peer = if hello { agent.hello() } else { agent.connect() };
        peer.send(&Frame::Exec { id: 0, exec: with(shell("cat <&5 >&5; echo done >&5"), &[5]) });
        peer.send(&data(0, 5, b"there and back "));
        assert_eq!(peer.output(0, 5), "there and back ");
        peer.send(&Frame::Eof { id: 0, stream: 5 });
        let finished = peer.finish(0);
        assert_eq!(
            (finished.stream(5), finished.code),
            (&b"done\n"[..], 0),
            "the answer comes after our half is closed"
        );
        let mut ended: Vec<_> = finished.ended.into_iter().filter(|stream| *stream != 0).collect();
        ended.sort_unstable();
        assert_eq!(ended, [1, 2, 5]);
    }
}

#[test]
fn bytes_for_one_descriptor_do_not_reach_another() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: with(shell("cat <&9 & cat <&3 >&9; wait"), &[3, 9]) });
    peer.send(&data(0, 3, b"from 3"));
    peer.send(&data(0, 9, b"from 9"));
    peer.send(&data(0, 4, b"nowhere"));
    peer.send(&Frame::Eof { id: 0, stream: 3 });
    peer.send(&Frame::Eof { id: 0, stream: 9 });
    let finished = peer.finish(0);
    assert_eq!(
        (finished.stream(9), finished.stream(1), finished.stream(3)),
        (&b"from 3"[..], &b"from 9"[..], &b""[..])
    );
}

#[test]
fn numbers_in_between_are_closed_in_the_program() {
    let agent = Agent::start();
    let seen = |fds: &[u32]| run(&agent, with(exec(&["ls", "-1v", "/proc/self/fd"]), fds)).stdout().replace('\n', " ");
    assert_eq!(seen(&[5]), "0 1 2 3 5 ", "3 is the directory itself");
    assert_eq!(seen(&[3, 8, 1023]), "0 1 2 3 4 8 1023 ");
    assert_eq!(seen(&[4, 3]), "0 1 2 3 4 5 ");
}

#[test]
fn sixty_four_extra_descriptors_are_served_and_one_more_is_refused() {
    let agent = Agent::start();
    let numbers: Vec<u32> = (3..67).collect();
    let mut peer = agent.connect();
    // A shell names single digits only.
    let echo = "for fd in $(seq 3 66); do echo $fd > /proc/self/fd/$fd 2>/dev/null; done; ls /proc/self/fd | wc -l";
    peer.send(&Frame::Exec { id: 0, exec: with(shell(echo), &numbers) });
    let finished = peer.finish(0);
    assert_eq!((finished.stdout().as_str(), finished.ended.len()), ("68\n", 66));
    refused(&run(&agent, with(exec(&["true"]), &(3..68).collect::<Vec<u32>>())), "limit of 64");
    assert_eq!(run(&agent, exec(&["true"])).code, 0);
}

fn refused(finished: &Finished, text: &str) {
    assert_eq!((finished.code, finished.frames), (127, 1));
    assert!(finished.error.contains(text), "{}", finished.error);
}

#[test]
fn numbers_that_cannot_be_given_are_refused() {
    let agent = Agent::start();
    for (fds, text) in [
        (&[0][..], "descriptor 0"),
        (&[1], "descriptor 1"),
        (&[3, 2], "descriptor 2"),
        (&[1024], "descriptor 1024"),
        (&[70_000], "descriptor 70000"),
        (&[u32::MAX], "descriptor 4294967295"),
        (&[3, 4, 3], "twice"),
    ] {
        refused(&run(&agent, with(exec(&["true"]), fds)), text);
    }
    assert_eq!(run(&agent, with(exec(&["true"]), &[3])).code, 0);
}
