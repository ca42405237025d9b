//! A fleet on a broker that tells its management API nothing: `keda.jobs.protocol: amqp`, and rates by way of Prometheus.

use std::net::SocketAddr;

use serde_json::Value;

use super::{Cluster, Protocol, REPLICAS_MAX, check, job};
use crate::support::management::{Management, get_text};
use crate::support::scene::as_worker;
use crate::support::{Broker, Scene, eventually};

const JOBS: u16 = 100;

#[tokio::test]
async fn a_broker_without_figures_still_tells_how_much_waits() {
    let Some(broker) = Broker::without_figures("rabbitmq_management,rabbitmq_prometheus") else {
        return; // Older servers always have figures.
    };
    let scene = Scene::at(broker.uri());
    scene.declare("slow").await;
    let queue = scene.queue("slow");
    let producer = scene.producer().await;
    producer
        .send_all((0..JOBS).map(|number| job(&scene.prefix, number)))
        .await;

    let management = Management::of(&broker);
    let overview = management.overview().await.expect("it answers");
    let by_http = management.queue(&queue).await.expect("it answers");
    let by_amqp = Scene::at(&as_worker(broker.uri())).waiting(&queue).await;
    let published = eventually("the broker's own metrics", || async {
        published(&broker, &queue).await.filter(|count| *count > 0.0)
    })
    .await;

    assert_eq!(overview["disable_stats"], true, "{overview:#}");
    assert_eq!(
        (&by_http["messages"], &by_http["message_stats"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(by_amqp, u32::from(JOBS), "the workers' own login sees what waits");
    assert_eq!(published, f64::from(JOBS));
}

/// What RabbitMQ's plug-in for Prometheus says was published to `queue`, by either of its names.
async fn published(broker: &Broker, queue: &str) -> Option<f64> {
    let families = "family=queue_exchange_metrics&family=channel_queue_exchange_metrics";
    let address = SocketAddr::from(([127, 0, 0, 1], broker.prometheus_port()));
    let text = get_text(address, &format!("/metrics/detailed?{families}"), "").await?;
    let of_queue = format!("queue=\"{queue}\"");
    let lines = text
        .lines()
        .filter(|line| line.contains("messages_published_total{") && line.contains(&of_queue));
    let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    counts.reduce(f64::max)
}

#[tokio::test]
async fn replicas_follow_the_backlog_over_amqp_without_the_plug_in() {
    let broker = Broker::durable_without_figures();
    let scene = Scene::at(broker.uri());
    scene.declare("slow").await;
    let mut cluster = Cluster::new(Protocol::Amqp, &scene);
    let mut producer = scene.producer().await;

    let ids = producer
        .send_all((0..JOBS).map(|number| job(&scene.prefix, number)))
        .await;
    cluster
        .run_until("all replicas", |cluster| cluster.wanted == REPLICAS_MAX)
        .await;
    cluster.run_until("no replica", |cluster| cluster.wanted == 0).await;
    let replies = producer.replies(&ids).await;
    cluster.all_ended().await;

    assert_eq!(cluster.course[0], 1, "{:?}", cluster.course);
    assert!(producer.remaining().await.is_empty(), "jobs were answered twice");
    replies.values().for_each(|replies| check(replies));
    scene.nothing_is_left("slow").await;
}
