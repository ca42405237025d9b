//! Isolating: a job that came back more than once is run in a process of its own, so that it can take nobody with it.
//!
//! Running it alone is not enough. When a job ends the worker, whatever else that worker holds has come back once more as
//! well, and would reach the delivery limit together with the culprit. The process is this same program
//! (`inferq engine`), with one session of the model and two pipes; it lives while such jobs come and a little longer.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::hardware::Hardware;
use super::infer::{Engine, EngineError, Input, Output};
use super::watch::Stop;
use crate::model::signature::Signature;

/// How to run jobs apart, and which.
#[derive(Debug, Clone)]
pub struct Isolation {
    /// This program.
    pub program: PathBuf,
    /// Earlier deliveries from which on a job is run apart.
    pub after: u64,
}

/// From which delivery count on jobs are isolated; `None` if never.
///
/// Never later than at the last delivery before the limit, where a job is given up. A queue that does not count tells only
/// that a job was delivered before, so there it is at once.
pub fn threshold(isolate_after: u32, delivery_limit: Option<u64>) -> Option<u64> {
    match (u64::from(isolate_after), delivery_limit) {
        (0, _) => None,
        (_, None) => Some(1),
        (after, Some(limit)) => Some(after.min(limit.saturating_sub(1)).max(1)),
    }
}

/// One tensor on its way through a pipe.
#[derive(Debug, Serialize, Deserialize)]
struct Array {
    shape: Vec<usize>,
    data: Bytes,
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Ready,
    Outputs(Vec<Array>),
    Failed(String),
    OutOfMemory(String),
}

/// The engine in another process.
pub struct Isolated {
    child: Arc<Mutex<Child>>,
    requests: BufWriter<ChildStdin>,
    reports: BufReader<ChildStdout>,
    signature: Signature,
    used: Instant,
}

impl Isolated {
    /// Starts the process; [`Isolated::wait`] says when it has loaded the model.
    ///
    /// # Errors
    /// There can be no further process.
    pub fn start(program: &Path, model: &Path, hardware: &Hardware, signature: &Signature) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg("engine")
            .args(hardware.arguments())
            .arg(model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C at the terminal is for the worker, which may need this process to finish what it holds.
            .process_group(0)
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Self {
            child: Arc::new(Mutex::new(child)),
            requests: BufWriter::new(stdin),
            reports: BufReader::new(stdout),
            signature: signature.clone(),
            used: Instant::now(),
        })
    }

    /// Waits until the model is loaded.
    ///
    /// # Errors
    /// It could not be; standard error has the reason.
    pub fn wait(&mut self) -> io::Result<()> {
        match receive(&mut self.reports)? {
            Some(Report::Ready) => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Whether the process can be given a job. It leaves when it has had nothing to do for a while, and must not be about
    /// to: a job that finds it gone would be taken for the culprit.
    pub fn is_fit(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        self.used.elapsed() < IDLE_MAX / 2 && matches!(child.try_wait(), Ok(None))
    }

    fn exchange(&mut self, inputs: &[Input<'_>]) -> io::Result<Option<Report>> {
        let arrays: Vec<Array> = inputs
            .iter()
            .map(|input| Array {
                shape: input.shape.clone(),
                data: input.parts.concat().into(),
            })
            .collect();
        send(&mut self.requests, &arrays)?;
        receive(&mut self.reports)
    }

    /// What the end of the process says of the job that it had.
    fn died(&self) -> EngineError {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill(); // It may only have closed its pipes.
        match child.wait() {
            Ok(status) => cause_of_death(status),
            Err(error) => EngineError::Run(format!("its process was lost: {error}")),
        }
    }
}

/// Nobody sends SIGKILL but the kernel when memory is short, and whoever stopped the run, which is known before this is read.
fn cause_of_death(status: ExitStatus) -> EngineError {
    if status.signal() == Some(SIGKILL) {
        EngineError::Memory("the process that ran this job alone was killed".to_owned())
    } else {
        EngineError::Run(format!("it ended the process that ran it alone ({status})"))
    }
}

impl Engine for Isolated {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, EngineError> {
        self.used = Instant::now();
        match self.exchange(inputs) {
            Ok(Some(Report::Outputs(arrays))) => Ok(arrays
                .into_iter()
                .map(|array| Output::new(array.shape, array.data))
                .collect()),
            Ok(Some(Report::Failed(error))) => Err(EngineError::Run(error)),
            Ok(Some(Report::OutOfMemory(error))) => Err(EngineError::Memory(error)),
            Ok(Some(Report::Ready) | None) | Err(_) => Err(self.died()),
        }
    }

    fn stopper(&mut self) -> Option<Arc<dyn Stop>> {
        Some(Arc::new(Kill(self.child.clone())))
    }
}

/// Nothing is lost with a process that has one job.
struct Kill(Arc<Mutex<Child>>);

impl Stop for Kill {
    fn stop(&self) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The other side: answers what comes in with `engine`, until there has been nothing for a while.
///
/// # Errors
/// The worker does not listen any more.
pub fn serve(mut engine: impl Engine, reports: &mut impl Write) -> io::Result<()> {
    let (sender, requests) = mpsc::sync_channel::<Vec<Array>>(1);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        while let Ok(Some(request)) = receive(&mut stdin) {
            if sender.send(request).is_err() {
                return;
            }
        }
        // The worker is gone. A run that hangs must not stay behind.
        std::process::exit(0);
    });
    send(reports, &Report::Ready)?;
    while let Ok(arrays) = requests.recv_timeout(IDLE_MAX) {
        send(reports, &report(&mut engine, &arrays))?;
    }
    Ok(())
}

fn report(engine: &mut impl Engine, arrays: &[Array]) -> Report {
    let inputs: Vec<_> = arrays
        .iter()
        .map(|array| Input {
            shape: array.shape.clone(),
            parts: vec![&array.data],
        })
        .collect();
    match engine.run(&inputs) {
        Ok(outputs) => Report::Outputs(
            outputs
                .into_iter()
                .map(|output| Array {
                    data: Bytes::copy_from_slice(output.bytes()),
                    shape: output.shape,
                })
                .collect(),
        ),
        Err(EngineError::Memory(error)) => Report::OutOfMemory(error),
        // The model was loaded a moment ago, so the device is lost to nobody but this job.
        Err(EngineError::Run(error) | EngineError::Device(error)) => Report::Failed(error),
        Err(error @ EngineError::Late(_)) => Report::Failed(error.to_string()),
    }
}

fn send(pipe: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let frame = rmp_serde::to_vec(message).map_err(io::Error::other)?;
    pipe.write_all(&(frame.len() as u64).to_le_bytes())?;
    pipe.write_all(&frame)?;
    pipe.flush()
}

/// The next message; `None` at the end.
fn receive<T: DeserializeOwned>(pipe: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 8];
    match pipe.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut frame = Vec::new();
    let bytes = u64::from_le_bytes(length);
    if pipe.take(bytes).read_to_end(&mut frame)? as u64 != bytes {
        return Ok(None);
    }
    rmp_serde::from_slice(&frame).map(Some).map_err(io::Error::other)
}

const SIGKILL: i32 = 9;
/// Jobs that came back come together. Kept any longer, the second copy of the model would only take memory.
const IDLE_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::test_engine::{TestEngine, spec};
    use crate::wire::tensor::Datatype;

    #[test]
    fn a_job_is_isolated_before_it_is_given_up_and_at_once_where_nobody_counts() {
        for (after, limit, expected) in [
            (2, Some(10), Some(2)),
            (2, Some(2), Some(1)),
            (2, Some(1), Some(1)),
            (20, Some(10), Some(9)),
            (2, None, Some(1)),
            (0, Some(10), None),
            (0, None, None),
        ] {
            assert_eq!(threshold(after, limit), expected, "{after} of {limit:?}");
        }
    }

    #[test]
    fn what_goes_through_a_pipe_comes_out_of_it_and_a_cut_message_is_the_end() {
        let array = Array {
            shape: vec![2, 3],
            data: Bytes::from_static(b"abcdef"),
        };
        let mut pipe = Vec::new();
        send(&mut pipe, &Report::Outputs(vec![array])).unwrap();

        let Some(Report::Outputs(arrays)) = receive(&mut &pipe[..]).unwrap() else {
            panic!("something else came out");
        };
        assert_eq!(
            (&arrays[0].shape[..], &arrays[0].data[..]),
            (&[2, 3][..], &b"abcdef"[..])
        );
        for cut in 0..pipe.len() {
            assert!(receive::<Report>(&mut &pipe[..cut]).unwrap().is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn an_input_that_keeps_its_value_is_absent_behind_a_pipe() {
        let inputs = vec![spec("x", Datatype::Fp32, &["batch"])];
        let mut engine = TestEngine::new(inputs, Vec::new(), |inputs| {
            let absent: Vec<_> = inputs
                .iter()
                .map(|input| input.shape.is_empty() && input.data.is_empty())
                .collect();
            Err(EngineError::Run(format!("{absent:?}")))
        });
        let array = |shape: &[usize], data: &'static [u8]| Array {
            shape: shape.to_vec(),
            data: Bytes::from_static(data),
        };

        let told = report(&mut engine, &[array(&[0], b""), array(&[], b""), array(&[], b"1234")]);

        assert!(matches!(told, Report::Failed(text) if text == "[false, true, false]"));
    }

    #[test]
    fn failures_are_told_by_kind() {
        let tell = |error: fn() -> EngineError| {
            let inputs = vec![spec("x", Datatype::Fp32, &["batch"])];
            let mut engine = TestEngine::new(inputs, Vec::new(), move |_| Err(error()));
            report(&mut engine, &[])
        };

        assert!(matches!(tell(|| EngineError::Run("bad".into())), Report::Failed(text) if text == "bad"));
        assert!(matches!(tell(|| EngineError::Memory("big".into())), Report::OutOfMemory(text) if text == "big"));
        assert!(matches!(tell(|| EngineError::Device("gone".into())), Report::Failed(text) if text == "gone"));
    }

    #[test]
    fn a_process_that_the_system_killed_says_nothing_of_its_job() {
        let aborted = cause_of_death(ExitStatus::from_raw(6));
        let killed = cause_of_death(ExitStatus::from_raw(9));

        assert!(matches!(aborted, EngineError::Run(text) if text.contains("SIGABRT")));
        assert!(matches!(killed, EngineError::Memory(_)));
    }

    #[test]
    fn a_program_that_is_no_engine_is_found_out() {
        let signature = Signature {
            inputs: Vec::new(),
            outputs: Vec::new(),
        };

        let missing = Isolated::start(
            Path::new("/nonexistent/inferq"),
            Path::new("m"),
            &Hardware::CPU,
            &signature,
        );
        let mut other = Isolated::start(Path::new("true"), Path::new("m"), &Hardware::CPU, &signature).unwrap();

        assert!(missing.is_err());
        assert!(other.wait().is_err());
    }
}
