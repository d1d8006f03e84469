//! Pipes: one way until the sender is gone, and both ways with any type.

use std::collections::BTreeMap;

use phalanx::{Pipe, Process, Sender};
use serde::{Deserialize, Serialize};

fn send_list(sender: Sender<Vec<i32>>) {
    sender.send(vec![1, 2, 3]).unwrap();
    for number in 0..3 {
        sender.send(vec![number]).unwrap();
    }
    // The end of the pipe is closed with this process.
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Thing {
    Text(String),
    Number(f64),
    Map(BTreeMap<String, u32>),
}

/// Gives everything back, with its place in the row.
fn echo(pipe: Pipe<(usize, Thing), Thing>) {
    for (place, thing) in pipe.iter().enumerate() {
        pipe.send((place, thing.unwrap())).unwrap();
    }
}

fn main() -> phalanx::Result<()> {
    phalanx::init();
    let (sender, receiver) = Pipe::one_way()?;
    let child = Process::spawn(send_list, sender)?;
    let lists = receiver.iter().collect::<phalanx::Result<Vec<_>>>()?;
    child.join()?;
    println!("until the end came: {lists:?}");
    assert_eq!(lists, [vec![1, 2, 3], vec![0], vec![1], vec![2]]);
    assert!(receiver.recv().unwrap_err().is_closed());

    let (here, there) = Pipe::new()?;
    let child = Process::spawn(echo, there)?;
    let things = [
        Thing::Text("a string".into()),
        Thing::Number(2.5),
        Thing::Map(BTreeMap::from([("one".into(), 1), ("two".into(), 2)])),
    ];
    for (place, thing) in things.into_iter().enumerate() {
        here.send(thing.clone())?;
        let reply = here.recv()?;
        println!("{reply:?}");
        assert_eq!(reply, (place, thing));
    }
    drop(here);
    child.join()
}
