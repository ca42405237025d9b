//! Sends images of digits as one job with the client library, and says how many were recognised.
//!
//!     cargo run --example client -- amqp://guest:guest@127.0.0.1:5672/%2f images.npy labels.npy

use anyhow::Context as _;
use inferq::client::Client;
use ndarray::{Array1, Array2, ArrayD, Axis};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |what: &str| arguments.next().with_context(|| format!("the {what} is missing"));
    let uri = argument("address of the broker")?;
    let images: Array2<f32> = ndarray_npy::read_npy(argument("file of the images")?)?;
    let labels: Array1<i64> = ndarray_npy::read_npy(argument("file of the labels")?)?;

    let client = Client::connect(&uri).await?;
    let probabilities: ArrayD<f32> = client.predict_array("digits", &images).await?;
    client.close().await;

    let guesses = probabilities.axis_iter(Axis(0)).map(|row| {
        let digits = row.iter().zip(0_i64..);
        digits
            .max_by(|one, other| one.0.total_cmp(other.0))
            .map(|(_, digit)| digit)
    });
    let right = guesses
        .zip(&labels)
        .filter(|(guess, label)| *guess == Some(**label))
        .count();
    println!("{right} of {} digits recognised", labels.len());
    Ok(())
}
