# Everything here sets up what it needs: a Rust toolchain, git and make are enough on Debian and Ubuntu.
.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-brokers chart chart-docs chart-golden image-check
.PHONY: bench bench-growth bench-batching bench-scaling bench-client bench-predict bench-full-queue bench-smoke chaos memory seconds drains soak fuzz lint models clean

TRAIN := target/train
FUZZ_SECONDS ?= 60
# Nothing is written beside the tests.
PYTEST := .deps/python/bin/python -B -m pytest -q -p no:cacheprovider

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: RabbitMQ, a C compiler, ONNX Runtime, Python packages of the tests
	@scripts/setup

build: ## Build the release binary
	@scripts/setup build
	cargo build --release --locked

demo: build ## Run a broker, a worker and a producer, and show what they do
	scripts/demo

# The broker first: nearly every other test stands on it.
test: setup ## Run all tests against private brokers
	tests/scripts/broker_test
	cargo test --locked
	$(MAKE) --no-print-directory chart
	$(MAKE) --no-print-directory bench-smoke

# A release of the chart runs here as well, with the binary that the tests build. `helm` is used if it is on the PATH.
chart: setup ## Test the Helm chart and lint the Dockerfile
	cargo build --locked
	$(PYTEST) tests/chart

chart-docs: setup ## Write the table of helm/inferq/README.md anew from values.yaml
	.deps/python/bin/python scripts/chart-readme

chart-golden: setup ## Record anew what the examples of the chart render to
	INFERQ_TEST_GOLDEN=renew $(PYTEST) tests/chart -k render_as_recorded

# IMAGE=cuda builds the one for GPUs too, and fetches 1.6 GB for it.
image-check: ## Build the image without a Docker engine and run it (root, Debian, 10 minutes)
	scripts/image-check $(IMAGE)

bench: setup ## Measure inferq beside the floor and what one would write instead; 40 minutes
	benches/run --repeats 5 --json target/bench.json

bench-growth: setup ## Measure how inferq grows with rows, batch cap, workers, models, bytes and backlog; 15 minutes
	benches/growth --json target/growth.json

bench-batching: setup ## Measure greedy batching against fixed waits and against theory; 25 minutes
	benches/batching --json target/batching.json

bench-scaling: setup ## Simulate how a fleet follows its backlog under KEDA and the HPA; 3 minutes
	benches/scaling/run --json target/scaling.json

bench-client: setup ## Measure what a call of the client library adds to an echo round trip; 3 minutes
	benches/client --json target/client.json

bench-predict: setup ## Measure inferq predict on a million rows against a full queue; 10 minutes
	benches/predict --json target/predict.json

bench-full-queue: setup ## Measure what a producer who does not read its answers costs the others; 7 minutes
	benches/full-queue --json target/full-queue.json

# Built like the tests, since an optimised build takes minutes; the figures say nothing.
bench-smoke: setup ## Run every benchmark briefly: do they still work?
	cargo test --locked --bench micro
	benches/run --quick --profile dev
	benches/sharing/run --quick --profile dev
	benches/growth --quick --profile dev
	benches/batching --quick --profile dev
	benches/scaling/run --quick
	benches/client --quick --profile dev
	benches/predict --quick --profile dev
	benches/full-queue --quick --profile dev
	benches/gpu/smoke

# For every version that is to be served, the path of its rabbitmq-server.
test-brokers: setup ## Run the tests that need a broker on each server that INFERQ_TEST_RABBITMQ lists
	@[ -n "$$INFERQ_TEST_RABBITMQ" ] || { echo "INFERQ_TEST_RABBITMQ must list rabbitmq-server programs" >&2; exit 1; }
	cargo build --locked --examples
	set -e; for server in $$INFERQ_TEST_RABBITMQ; do \
	  echo "--- $$server"; export INFERQ_TEST_RABBITMQ="$$server"; \
	  tests/scripts/broker_test; cargo test --locked --test it; \
	done

# INFERQ_TEST_CHAOS_SECONDS and INFERQ_TEST_CHAOS_SEED say how long and which faults; each run prints its own.
chaos: setup ## Let broker, workers, network and nodes of a cluster fail for some minutes, and count what was lost
	INFERQ_TEST_CHAOS_SECONDS=$${INFERQ_TEST_CHAOS_SECONDS:-300} cargo test --locked --test it chaos::whatever -- --nocapture
	INFERQ_TEST_CLUSTER_ROUNDS=$${INFERQ_TEST_CLUSTER_ROUNDS:-4} cargo test --locked --test it cluster:: -- --nocapture

# Needs 10 GiB of memory and of disk for the broker.
# INFERQ_TEST_BODY_JOBS says how many, 2,000 unless it is set.
memory: setup ## Let bodies of 16 and 512 MiB fill workers in cgroups of 2 GiB; 20 minutes
	INFERQ_TEST_BODY_MIB=16 cargo test --locked --test it overload:: -- --nocapture --test-threads 1

seconds: setup ## Hold what inferq_backlog_seconds says against what queues take to drain, on a machine that does nothing else
	INFERQ_TEST_EXACT=1 cargo test --locked --test it seconds:: -- --nocapture --test-threads 1

drains: setup ## Stop a hundred workers at random moments of their work, and count what was lost
	INFERQ_TEST_DRAINS=$${INFERQ_TEST_DRAINS:-100} cargo test --locked --test it stop::drains -- --nocapture

# Other schedules each time; `tests/README.md` says how one of them is run again.
soak: ## Run three million simulated schedules, or INFERQ_TEST_SCHEDULES
	INFERQ_TEST_FIRST=$${INFERQ_TEST_FIRST:-$$(date +%s)000000} INFERQ_TEST_SCHEDULES=$${INFERQ_TEST_SCHEDULES:-3000000} \
	  cargo test --locked --profile soak --lib no_schedule -- --nocapture

# What it finds on the way is kept for the next time, outside the corpus of the repository.
fuzz: ## Fuzz each decoder for FUZZ_SECONDS (60); needs cargo-fuzz
	for target in msgpack json binary reply job frames onnx; do \
		found=fuzz/target/corpus/$$target; mkdir -p $$found; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none $$target $$found fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) \
		  || exit 1; \
	done

lint: ## Check format, lints, documentation, dependencies, scripts, the Dockerfile and the tree
	@scripts/setup lint
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	scripts/check-dependencies
	scripts/check-scripts
	scripts/check-tree
	.deps/python/bin/hadolint --failure-threshold info Dockerfile
	.deps/python/bin/python scripts/chart-readme --check

models: ## Train the models of models/ anew (CPython 3.11 on x86_64)
	python3.11 -m venv $(TRAIN)
	$(TRAIN)/bin/python -m pip install --quiet --require-hashes --requirement models/requirements.txt
	$(TRAIN)/bin/python models/train.py all

clean: ## Remove all that was built; .deps, which was downloaded, stays
	cargo clean
